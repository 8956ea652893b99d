"""Losses, sample weights, parametrisations that shape training."""
