"""Loops over code points and tokens, compiled by numba."""
