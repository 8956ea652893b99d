"""What the methods of this verb share."""
