"""What QATFakeQuant alone needs."""
