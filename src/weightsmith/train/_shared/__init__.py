"""Helpers of several training methods."""
