"""Configuration groups for any Hydra application."""
