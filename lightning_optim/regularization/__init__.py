"""Regularization: what keeps a network from fitting its training data too well, or prepares it for compression."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
