"""Stopping rules: how long the sparsity may grow."""
