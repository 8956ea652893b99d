r"""OFQ: train transformers with weights and activations of two to four bits, without weights that oscillate.

Liu, Liu, Cheng, "Oscillation-free Quantization for Low-bit Vision Transformers", 2023, arXiv 2302.02210. Three parts:

* *StatsQ*: the step between the levels of a row follows from its mean magnitude, :math:`s = 2\,\overline{|w|}\,/\,n`
  with :math:`n = 2^{b-1}`, instead of being learned.
* *Query-key reparameterization*: the product of the query and key weights of a head is quantized instead of both.
* *Confidence-guided annealing*: at the end only weights near a threshold between two levels are trained.
"""

from weightsmith.quantize._ofq.activations import ActivationQuantizer
from weightsmith.quantize._ofq.annealing import ConfidenceGuidedAnnealing, IterativeFreezing, Oscillations
from weightsmith.quantize._ofq.method import lsq, ofq
from weightsmith.quantize._ofq.prepare import apply_quantization, finish_qat, initialize_activations, prepare_qat
from weightsmith.quantize._ofq.weights import LSQWeight, StatsQ

__all__ = [
    "ActivationQuantizer",
    "ConfidenceGuidedAnnealing",
    "IterativeFreezing",
    "LSQWeight",
    "Oscillations",
    "StatsQ",
    "apply_quantization",
    "finish_qat",
    "initialize_activations",
    "lsq",
    "ofq",
    "prepare_qat",
]
