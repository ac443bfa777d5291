"""Graph: which channels are coupled to which, by labels over the exported graph."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
