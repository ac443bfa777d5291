"""How long the sparsity may grow."""
