"""Models of the default job."""
