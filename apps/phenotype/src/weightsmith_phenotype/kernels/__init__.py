"""Loops compiled with numba."""
