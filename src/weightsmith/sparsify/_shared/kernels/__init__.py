"""Compiled kernels of pruning."""
