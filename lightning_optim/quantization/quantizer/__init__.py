"""How a value becomes a low-bit number."""
