"""Parts of the distillation callback."""
