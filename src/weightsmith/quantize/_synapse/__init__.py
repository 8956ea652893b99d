r"""Synapse rule: train weights that are pairs of imperfect analog conductances, one identical pulse at a time.

Lim, Bae, Eum, Lee, Kim, Kwon, Park, Lee, "Adaptive Learning Rule for Hardware-based Deep Neural Networks Using
Electronic Synapse Devices", 2017, arXiv 1707.06381. A weight is the difference of two conductances, normalized to
[0, 1],

.. math::

    w = s\,(g^+ - g^-)

and changes by pulses, each of which moves one conductance by the step that the device takes from where it is. The
proposed rule is *unidirectional*: up is a potentiation of :math:`g^+`, down one of :math:`g^-`. Depression, which is
steeper than potentiation in most devices, is never used. Per sample, with the input :math:`x_i` of a layer and the
error :math:`\delta_j` of its output, the weight gets one pulse if :math:`x_i` is active and
:math:`|\delta_j| > \theta`; there is no learning rate.

Only the paper's abstract was available. Devices are the field's standard families; thresholds, scale and refresh are
a reconstruction.
"""

from weightsmith.quantize._synapse.devices import Exponential, Measured, SoftBounds, SynapseDevice, read_device
from weightsmith.quantize._synapse.method import synapse
from weightsmith.quantize._synapse.pairs import to_analog, to_digital
from weightsmith.quantize._synapse.pulses import PulsedOptimizer

__all__ = [
    "Exponential",
    "Measured",
    "PulsedOptimizer",
    "SoftBounds",
    "SynapseDevice",
    "read_device",
    "synapse",
    "to_analog",
    "to_digital",
]
