"""What falls together."""
