"""What every method stands on, and nothing that knows a method."""
