"""Meta loss rescaling: learn during training how much each sample counts when labels may be wrong."""

from weightsmith.train._meta_rescaling.features import ClassMemory, normal_divergence, normal_overlap
from weightsmith.train._meta_rescaling.method import MetaRescaler, meta_rescaling
from weightsmith.train._meta_rescaling.rescaler import Rescaler
from weightsmith.train._meta_rescaling.trainer import MetaRescalingLoss

__all__ = [
    "ClassMemory",
    "MetaRescaler",
    "MetaRescalingLoss",
    "Rescaler",
    "meta_rescaling",
    "normal_divergence",
    "normal_overlap",
]
