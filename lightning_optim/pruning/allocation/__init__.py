"""How a sparsity is spread over layers."""
