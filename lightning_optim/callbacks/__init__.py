"""The Lightning shells: time, plumbing, logging and callback state."""
