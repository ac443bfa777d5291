"""Structures: what falls together."""
