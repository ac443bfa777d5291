"""Search for an architecture inside one trained supernet."""
