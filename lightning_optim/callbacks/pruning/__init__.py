"""What PruningScheduler alone needs."""
