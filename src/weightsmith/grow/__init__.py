"""Other sizes from trained weights."""
