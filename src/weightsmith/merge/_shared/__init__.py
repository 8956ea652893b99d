"""What several merges stand on."""
