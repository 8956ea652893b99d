"""Fewer weights, fewer activations."""
