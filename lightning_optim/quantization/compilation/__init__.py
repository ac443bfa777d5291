"""A simulated network as one graph."""
