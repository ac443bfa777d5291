"""Switchable forwards: forward methods that follow the active architecture."""
