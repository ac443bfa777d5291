"""Mixing: what the samples of a batch and their labels become."""
