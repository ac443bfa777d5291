"""Simulation: where a network is quantized, and what is known of its tensors."""
