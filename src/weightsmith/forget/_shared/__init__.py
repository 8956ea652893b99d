"""What several methods of forgetting stand on."""
