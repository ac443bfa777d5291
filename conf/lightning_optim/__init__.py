"""Configuration groups, and the root of the command line's own search path."""
