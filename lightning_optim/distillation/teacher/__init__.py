"""Where a teacher comes from."""
