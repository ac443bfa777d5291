"""Parts of the regularization callbacks."""
