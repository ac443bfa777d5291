"""Stages of optimization, one after the other."""
