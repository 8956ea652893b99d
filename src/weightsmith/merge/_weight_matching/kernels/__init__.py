"""Compiled inner loops of the matching (numba on the CPU)."""
