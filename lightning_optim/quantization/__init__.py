"""Low-bit numbers, simulated as the device computes them."""
