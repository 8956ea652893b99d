"""Experiments that check the claims of the paper, one module each; `weightsmith claims phenotagger` runs it."""
