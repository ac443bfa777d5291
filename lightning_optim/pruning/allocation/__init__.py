"""Allocations: how a sparsity is spread over layers."""
