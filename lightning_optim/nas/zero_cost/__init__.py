"""Zero-cost scores: what an architecture is worth, guessed without training."""
