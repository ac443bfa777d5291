"""Dropout: what is dropped while a network trains."""
