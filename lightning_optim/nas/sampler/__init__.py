"""Samplers: which paths of a supernet each optimizer step trains."""
