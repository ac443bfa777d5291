"""Change a live model in place, and keep everything around it right."""
