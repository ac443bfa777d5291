"""Who is coupled to whom: channel labels over the exported graph."""
