"""Small networks of the usual families, to record forgetting trajectories of: at most 30,000 parameters each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["NETS"]


class _Residual(nn.Module):
    """Two convolutions beside a shortcut; a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h2 w2"]:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


class _Dense(nn.Module):
    """Three convolutions, each of which sees all earlier features."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_conv(inputs + index * growth, growth, 1) for index in range(3))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


class _ViT(nn.Module):
    """Two transformer blocks on 2x2 patches."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n classes"]:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.blocks(tokens).mean(1))


def _conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _head(features: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * features, classes)]


def _plain(classes: int) -> nn.Module:
    """The authors' kind of network, without normalization."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, classes))


def _normalized(classes: int) -> nn.Module:
    return nn.Sequential(_conv(1, 12, 1), _conv(12, 24, 2), _conv(24, 24, 1), *_head(24, classes))


def _resnet(classes: int) -> nn.Module:
    return nn.Sequential(_conv(1, 12, 1), _Residual(12, 12, 1), _Residual(12, 24, 2), *_head(24, classes))


def _densenet(classes: int) -> nn.Module:
    return nn.Sequential(
        _conv(1, 8, 1), _Dense(8, 8), nn.Conv2d(32, 16, 1), nn.AvgPool2d(2), _Dense(16, 8), *_head(40, classes)
    )


NETS: tuple[Callable[[int], nn.Module], ...] = (_plain, _normalized, _resnet, _densenet, _ViT)
