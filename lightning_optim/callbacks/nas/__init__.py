"""What NASSupernet alone needs."""
