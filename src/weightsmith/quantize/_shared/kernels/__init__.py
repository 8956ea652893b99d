"""Compiled inner loops of packed layers (numba on the CPU)."""
