"""What range a tensor has."""
