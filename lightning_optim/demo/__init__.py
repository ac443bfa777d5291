"""The data and models of the default job."""
