"""Compilation: a simulated network as one graph."""
