"""Quantizers: how a value becomes a low-bit number."""
