"""What is pruned goes physically: trial, channels, whole branches."""
