"""Callbacks of Lightning: when a technique acts, what it logs and what a checkpoint keeps of it."""
