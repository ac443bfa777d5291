"""Which weights come back."""
