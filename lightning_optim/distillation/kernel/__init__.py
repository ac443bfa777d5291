"""Kernels: losses over large vocabularies and long sequences, with analytic gradients and little memory."""
