"""Ingredient lines: tokens, labels, amounts."""
