"""What every callback asks of a Trainer."""
