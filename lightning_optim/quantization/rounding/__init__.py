"""Tensor -> rounded tensor with a gradient."""
