"""Evaluation of sparse autoencoders: prompts, sites, dictionaries, edits, measures."""
