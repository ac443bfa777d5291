"""Lowering of a simulated network to an integer graph."""
