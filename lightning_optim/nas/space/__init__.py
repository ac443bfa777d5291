"""Search space: what may vary in a network."""
