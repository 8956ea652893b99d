"""Helpers of several ways to grow."""
