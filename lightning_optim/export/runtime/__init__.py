"""Runtimes that an exported network can be for."""
