"""Networks with a search space of their own, plain modules for images of any size."""
