"""Phases of training: which one several seeds of a network are in, what to change, and zoos that map the phases."""
