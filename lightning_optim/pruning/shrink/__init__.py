"""Physical removal of what is pruned: trial, channels, whole branches."""
