"""How architectures are picked."""
