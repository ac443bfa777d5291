"""How much: progress through a window -> value."""
