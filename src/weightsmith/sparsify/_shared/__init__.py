"""What several pruning methods stand on."""
