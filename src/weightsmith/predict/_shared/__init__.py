"""What several predictors stand on."""
