"""Data modules of the default job."""
