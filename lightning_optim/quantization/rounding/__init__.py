"""Rounding: tensor -> rounded tensor with a gradient."""
