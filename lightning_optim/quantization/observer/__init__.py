"""Observers: what range a tensor has."""
