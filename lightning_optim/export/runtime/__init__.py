"""Runtimes that a network can be exported for."""
