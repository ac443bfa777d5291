"""Copied to hydra_plugins/ by the build: Hydra looks for plugins there."""
