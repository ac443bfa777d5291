"""Search: what to try next, for architectures, hyperparameters and recipes alike; no torch, no Lightning."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
