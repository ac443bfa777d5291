"""Transfer losses."""
