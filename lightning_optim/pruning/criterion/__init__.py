"""How important a weight or a channel is."""
