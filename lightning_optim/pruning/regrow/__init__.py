"""Regrowth: which weights come back."""
