"""Weights nobody trained."""
