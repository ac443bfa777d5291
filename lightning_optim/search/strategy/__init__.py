"""Search strategies: which candidate to try next."""
