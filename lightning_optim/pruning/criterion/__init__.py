"""Criteria: how important a weight or a channel is."""
