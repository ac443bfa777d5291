"""Teachers: where a trained network comes from."""
