"""From a simulated network to an integer graph."""
