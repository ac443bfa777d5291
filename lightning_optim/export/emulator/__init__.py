"""Arithmetic of the runtime's integer kernels, worked out once more: the proof."""
