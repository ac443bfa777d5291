"""Forwards that follow the active architecture."""
