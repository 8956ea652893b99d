"""What several measures stand on."""
