"""What several ways to grow stand on."""
