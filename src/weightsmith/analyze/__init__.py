"""Measure weights, change nothing."""
