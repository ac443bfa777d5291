"""Which weights, channels or layers may go."""
