r"""Permute one network's units to match another network's, so that the two can be averaged.

Ainsworth, Hayase, Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries" (ICLR 2023), arXiv
2209.04836, analyzed by Ito, Yamada, Kumagai (ICLR 2025), arXiv 2402.04051. Reordering the hidden units of a layer,
together with the next layer's inputs, does not change a network's function:

.. math:: W'_l = P_l W_l P_{l-1}^\top, \quad b'_l = P_l b_l, \quad P_0 = P_L = I

Which axes of which weights may be reordered together is found by running the model once
(:func:`~weightsmith.core.symmetry.find_symmetry`); the order by linear assignments over weights
(:func:`match_weights`), over activations (:func:`match_activations`), or by the loss at the midpoint
(:func:`match_straight_through`).
"""

from __future__ import annotations

from weightsmith.merge._weight_matching.activations import match_activations
from weightsmith.merge._weight_matching.many import MergedNetworks, merge_many
from weightsmith.merge._weight_matching.matching import Matching, match_weights
from weightsmith.merge._weight_matching.method import weight_matching
from weightsmith.merge._weight_matching.straight_through import StraightThrough, match_straight_through

__all__ = [
    "Matching",
    "MergedNetworks",
    "StraightThrough",
    "match_activations",
    "match_straight_through",
    "match_weights",
    "merge_many",
    "weight_matching",
]
