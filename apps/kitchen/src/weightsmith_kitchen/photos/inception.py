"""Inception-v1 (GoogLeNet), the network that DeepFood fine-tunes: nine modules of four branches each.

An Inception module concatenates a 1 x 1, a 3 x 3 and a 5 x 5 convolution and a max-pooling of the same input; 1 x 1
convolutions reduce the channels before the large ones. This is the original network: 5 x 5 branches and local
response normalization, where torchvision's ``googlenet`` has 3 x 3 branches and batch normalization.

Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke and Rabinovich (2015), arXiv:1409.4842.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AUXILIARY", "MODULES", "AuxiliaryHeads", "InceptionModule", "InceptionV1"]

FEATURES = 1024

MODULES: dict[str, tuple[int, tuple[int, int, int, int, int, int]]] = {
    "inception_3a": (192, (64, 96, 128, 16, 32, 32)),
    "inception_3b": (256, (128, 128, 192, 32, 96, 64)),
    "inception_4a": (480, (192, 96, 208, 16, 48, 64)),
    "inception_4b": (512, (160, 112, 224, 24, 64, 64)),
    "inception_4c": (512, (128, 128, 256, 24, 64, 64)),
    "inception_4d": (512, (112, 144, 288, 32, 64, 64)),
    "inception_4e": (528, (256, 160, 320, 32, 128, 128)),
    "inception_5a": (832, (256, 160, 320, 32, 128, 128)),
    "inception_5b": (832, (384, 192, 384, 48, 128, 128)),
}
"""Input channels of every module, and its widths: 1 x 1, reduced and 3 x 3, reduced and 5 x 5, after pooling."""

POOLED_BEFORE = ("inception_4a", "inception_5a")

AUXILIARY: dict[str, int] = {"inception_4a": 512, "inception_4d": 528}
"""The modules whose outputs the auxiliary heads read, and their channels."""


class InceptionModule(nn.Module):
    """Four branches over one input, concatenated.

    Parameters
    ----------
    channels : int
        Of the input.
    widths : tuple of int
        Of the 1 x 1 convolution, the reduction before 3 x 3, the 3 x 3 convolution, the reduction before 5 x 5, the
        5 x 5 convolution, and the 1 x 1 convolution after pooling.

    Examples
    --------
    >>> module = InceptionModule(*MODULES["inception_3a"])
    >>> module(torch.zeros(1, 192, 28, 28)).shape, sum(p.numel() for p in module.parameters())
    (torch.Size([1, 256, 28, 28]), 163696)
    """

    def __init__(self, channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, reduced_three, three, reduced_five, five, pooled = widths
        self.one = nn.Conv2d(channels, one, 1)
        self.reduce_three = nn.Conv2d(channels, reduced_three, 1)
        self.three = nn.Conv2d(reduced_three, three, 3, padding=1)
        self.reduce_five = nn.Conv2d(channels, reduced_five, 1)
        self.five = nn.Conv2d(reduced_five, five, 5, padding=2)
        self.pooled = nn.Conv2d(channels, pooled, 1)

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height width"]:
        """Apply the four branches, each ending in a ReLU."""
        three = self.three(functional.relu(self.reduce_three(x)))
        five = self.five(functional.relu(self.reduce_five(x)))
        pooled = self.pooled(functional.max_pool2d(x, 3, 1, 1))
        return functional.relu(torch.cat([self.one(x), three, five, pooled], dim=1))


class InceptionV1(nn.Module):
    """The network without its two auxiliary heads: 5,973,552 parameters, and 1,025 for each class.

    :class:`AuxiliaryHeads` are a module of their own, because only training needs them.

    Parameters
    ----------
    num_classes : int, default: 1000
        Outputs of the last layer.
    dropout : float, default: 0.4
        Share of the pooled features that is dropped in training.

    Examples
    --------
    >>> model = InceptionV1(101)
    >>> sum(p.numel() for p in model.parameters())
    6077077
    >>> model.eval()(torch.zeros(1, 3, 224, 224)).shape
    torch.Size([1, 101])
    """

    def __init__(self, num_classes: int = 1000, *, dropout: float = 0.4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.conv2_reduce = nn.Conv2d(64, 64, 1)
        self.conv2 = nn.Conv2d(64, 192, 3, padding=1)
        for name, (channels, widths) in MODULES.items():
            self.add_module(name, InceptionModule(channels, widths))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(FEATURES, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # the paper's code draws by Xavier; for ReLU without normalization the signal then fades, so Kaiming
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def features(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1024"]:
        """Pooled features of images; 224 x 224 pixels as the paper has them, other sizes work."""
        return self.features_and_maps(x)[0]

    def features_and_maps(
        self, x: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch 1024"], dict[str, Tensor]]:
        """Pooled features, and the outputs of the modules that :class:`AuxiliaryHeads` read."""
        maps = {}
        x = _pool(functional.relu(self.conv1(x)))
        x = functional.relu(self.conv2_reduce(_normalized(x)))
        x = _pool(_normalized(functional.relu(self.conv2(x))))
        for name in MODULES:
            if name in POOLED_BEFORE:
                x = _pool(x)
            x = self.get_submodule(name)(x)
            if name in AUXILIARY:
                maps[name] = x
        return functional.adaptive_avg_pool2d(x, 1).flatten(1), maps

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of images."""
        logits: Tensor = self.fc(self.dropout(self.features(x)))
        return logits


class AuxiliaryHeads(nn.Module):
    """The two heads in the middle of the network, whose losses reach its early layers on a short way in training.

    Each is a 5 x 5 average pooling with stride 3, a 1 x 1 convolution to 128 channels, a linear layer of 1,024 units
    and one of ``num_classes``. They are not used for predictions.

    Parameters
    ----------
    num_classes : int
        Outputs of each head.
    dropout : float, default: 0.7
        Share of the 1,024 units that is dropped in training.

    Examples
    --------
    >>> model, heads = InceptionV1(10), AuxiliaryHeads(10).eval()
    >>> features, maps = model.features_and_maps(torch.zeros(2, 3, 224, 224))
    >>> [tuple(logits.shape) for logits in heads(maps)]
    [(2, 10), (2, 10)]
    """

    def __init__(self, num_classes: int, *, dropout: float = 0.7) -> None:
        super().__init__()
        for name, channels in AUXILIARY.items():
            self.add_module(
                name,
                nn.Sequential(
                    nn.Conv2d(channels, 128, 1),
                    nn.ReLU(),
                    nn.Flatten(),
                    nn.Linear(128 * 4 * 4, 1024),
                    nn.ReLU(),
                    nn.Dropout(dropout),
                    nn.Linear(1024, num_classes),
                ),
            )

    def forward(self, maps: Mapping[str, Tensor]) -> list[Float[Tensor, "batch classes"]]:
        """Logits of each head, from the maps of :meth:`InceptionV1.features_and_maps`."""
        return [self.get_submodule(name)(_pooled_4x4(maps[name])) for name in AUXILIARY]


def _pooled_4x4(x: Tensor) -> Tensor:
    if x.shape[-2:] == (14, 14):
        return functional.avg_pool2d(x, 5, 3)
    return functional.adaptive_avg_pool2d(x, 4)  # of images that are not of 224 pixels; the paper has no others


def _pool(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, 2, ceil_mode=True)  # Caffe rounds sizes up


def _normalized(x: Tensor) -> Tensor:
    return functional.local_response_norm(x, size=5, alpha=1e-4, beta=0.75)
