"""Sharpness: how far, and where to, weights are moved before the gradient is taken."""
