"""Where training goes back to after a pruning step."""
