r"""Discrete key-value bottleneck: nearest-key look-up with learnable values behind a frozen encoder.

Traeuble, Goyal, Rahaman, Mozer, Kawaguchi, Bengio, Schoelkopf, "Discrete Key-Value Bottleneck", ICML 2023, arXiv
2207.11240. With a fixed projection :math:`P_c` of the features :math:`z` for each of :math:`C` codebooks,

.. math::

    j_c = \arg\min_j \lVert z P_c - k_{c,j} \rVert^2, \qquad \text{logits} = \frac1C \sum_c v_{c,j_c}

The keys :math:`k` are placed once, without labels, and frozen. Only the values :math:`v` are trained: a sample changes
the values of its own nearest keys and no others, so that new classes leave old ones alone.
"""

from weightsmith.continual._dkvb.bottleneck import DiscreteKeyValueBottleneck
from weightsmith.continual._dkvb.classifier import BottleneckClassifier

__all__ = ["BottleneckClassifier", "DiscreteKeyValueBottleneck"]
