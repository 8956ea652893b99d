"""Modules whose tensors can be cut, and the attributes that say their size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

__all__ = ["CONVOLUTIONS", "RESIZABLE", "is_depthwise", "resize"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
RESIZABLE = (nn.Linear, Conv1D, *CONVOLUTIONS, *TRANSPOSED, *BATCH_NORMS, nn.PReLU)
"""Modules whose attributes :func:`resize` knows."""


def resize(module: Any) -> None:
    """Set the attributes of a module that say its size, after its tensors have been cut.

    Examples
    --------
    >>> layer = nn.Linear(4, 3)
    >>> layer.weight.data = layer.weight.data[:, :2]
    >>> resize(layer)
    >>> layer.in_features
    2
    """
    shape = tuple(module.weight.shape) if isinstance(getattr(module, "weight", None), Tensor) else ()
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, Conv1D):
        module.nx, module.nf = shape
    elif isinstance(module, CONVOLUTIONS):
        if is_depthwise(module):
            module.in_channels = module.out_channels = module.groups = shape[0]
        else:
            module.out_channels, module.in_channels = shape[:2]
    elif isinstance(module, TRANSPOSED):
        module.in_channels, module.out_channels = shape[:2]
    elif isinstance(module, BATCH_NORMS):
        sized = next(t for t in (module.weight, module.running_mean) if t is not None)
        module.num_features = len(sized)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]


def is_depthwise(module: Any) -> bool:
    """Whether every channel of a convolution is a group of its own.

    Examples
    --------
    >>> is_depthwise(nn.Conv2d(4, 4, 3, groups=4)), is_depthwise(nn.Conv2d(4, 8, 3, groups=4))
    (True, False)
    """
    channels = (module.groups, module.in_channels, module.out_channels)
    return isinstance(module, CONVOLUTIONS) and len(set(channels)) == 1
