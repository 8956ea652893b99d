r"""WAGLE: unlearn only through the weights that carry what must be forgotten and not what must be kept.

Jia, Liu, Zhang, Ram, Baracaldo, Liu, "WAGLE: Strategic Weight Attribution for Effective and Modular Unlearning in Large
Language Models" (NeurIPS 2024), arXiv 2410.17509. With :math:`g_f` and :math:`g_r` the gradients of the mean loss on
what to forget and on what to retain, every weight has the score

.. math:: s_i = \Bigl| \bigl(\theta_i - g_{r,i} / \gamma\bigr) \, g_{f,i} \Bigr| .

Its first term is the effect of removing the weight, as in SNIP; the second is how the loss on what is retained pulls
it, with :math:`\gamma` for the curvature of that loss. The weights with the highest scores, a share ``density`` of all,
are trained by any objective of unlearning; the others stay bit-identical.
"""

from weightsmith.core.io import SparseDelta, apply_delta, load_delta, save_delta
from weightsmith.forget._shared.mask import WeightMask, masked_updates
from weightsmith.forget._wagle.attribution import WeightScores, attribute_weights
from weightsmith.forget._wagle.method import wagle

__all__ = [
    "SparseDelta",
    "WeightMask",
    "WeightScores",
    "apply_delta",
    "attribute_weights",
    "load_delta",
    "masked_updates",
    "save_delta",
    "wagle",
]
