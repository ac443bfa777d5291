"""What to try next, for architectures, hyperparameters and recipes alike; no torch, no Lightning."""
