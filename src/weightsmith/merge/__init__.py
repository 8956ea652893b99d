"""One network from several."""
