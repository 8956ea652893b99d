"""What several training methods stand on."""
