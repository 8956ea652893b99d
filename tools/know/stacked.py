"""Many small convolutional networks trained at once: their weights are stacked, their convolutions grouped.

Adam and batch normalization act elementwise and channelwise, so the stack trains exactly as its members alone would.

Legend: ``K`` networks, ``B`` images of a batch, ``C`` channels, ``H W`` height and width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

__all__ = ["BLOCKS", "Stack", "Weights", "gather_images"]

Weights = dict[str, Tensor]
BLOCKS = 3
STRIDES = (1, 2, 1)
EPSILON, MOMENTUM = 1e-5, 0.1
BETA1, BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8


@dataclass
class Stack:
    """The networks: three convolutions 3x3, each with batch normalization and ReLU, 2x2 average pooling, a linear head.

    Attributes
    ----------
    weights : dict of str to Tensor
        First dimension: the network.
    means, variances : list of Tensor
        Running statistics of each block, ``[networks * channels]``.
    """

    weights: Weights
    means: list[Tensor]
    variances: list[Tensor]

    @classmethod
    def fresh(cls, count: int, widths: Sequence[int], classes: int, generator: torch.Generator) -> Stack:
        """Initialize as ``torch.nn`` does.

        Examples
        --------
        >>> stack = Stack.fresh(2, (4, 8, 8), 5, torch.Generator().manual_seed(0))
        >>> stack.logits(torch.zeros(2, 3, 1, 8, 8)).shape
        torch.Size([2, 3, 5])
        """
        weights: Weights = {}
        inputs = 1
        for block, outputs in enumerate(widths):
            weights[f"{block}.weight"] = _uniform((count, outputs, inputs, 3, 3), inputs * 9, generator)
            weights[f"{block}.bias"] = _uniform((count, outputs), inputs * 9, generator)
            weights[f"{block}.scale"] = torch.ones(count, outputs)
            weights[f"{block}.shift"] = torch.zeros(count, outputs)
            inputs = outputs
        stack = cls(weights, [torch.zeros(count * w) for w in widths], [torch.ones(count * w) for w in widths])
        stack.new_head(classes, generator)
        return stack

    @property
    def kernels(self) -> list[str]:
        """Names of the convolution kernels."""
        return [f"{block}.weight" for block in range(BLOCKS)]

    def copy(self, weights: Weights | None = None) -> Stack:
        """Copy the stack, with other weights when given."""
        weights = self.weights if weights is None else weights
        return Stack(dict(weights), [m.clone() for m in self.means], [v.clone() for v in self.variances])

    def new_head(self, classes: int, generator: torch.Generator) -> None:
        """Replace the linear layer by a fresh one."""
        count, features = self.weights["2.weight"].shape[0], 4 * self.weights["2.weight"].shape[1]
        self.weights["head.weight"] = _uniform((count, classes, features), features, generator)
        self.weights["head.bias"] = _uniform((count, classes), features, generator)

    def logits(
        self,
        x: Float[Tensor, "networks batch 1 height width"],
        *,
        training: bool = False,
        momentum: float = MOMENTUM,
    ) -> Float[Tensor, "networks batch classes"]:
        """Run every network on its own batch; ``training`` uses and updates the batch statistics."""
        count, batch = x.shape[:2]
        z = x.transpose(0, 1).flatten(1, 2)
        for block in range(BLOCKS):
            kernel, bias, scale, shift = (
                self.weights[f"{block}.{name}"].flatten(0, 1) for name in ("weight", "bias", "scale", "shift")
            )
            z = functional.conv2d(z, kernel, bias, stride=STRIDES[block], padding=1, groups=count)
            z = functional.batch_norm(
                z, self.means[block], self.variances[block], scale, shift, training, momentum, EPSILON
            ).relu()
        features = functional.adaptive_avg_pool2d(z, 2).reshape(batch, count, -1).transpose(0, 1)
        return torch.baddbmm(
            self.weights["head.bias"].unsqueeze(1), features, self.weights["head.weight"].transpose(1, 2)
        )

    @torch.no_grad()
    def recalibrate(self, x: Float[Tensor, "networks batch 1 height width"]) -> None:
        """Replace the running statistics by those of one batch."""
        self.logits(x, training=True, momentum=1.0)

    @torch.no_grad()
    def accuracy(
        self, x: Float[Tensor, "networks batch 1 height width"], y: Int[Tensor, "networks batch"]
    ) -> Float[Tensor, " networks"]:
        """Share of each network's images that it classifies rightly."""
        return (self.logits(x).argmax(-1) == y).float().mean(1)

    def train(
        self,
        x: Float[Tensor, "networks images 1 height width"],
        y: Int[Tensor, "networks images"],
        *,
        epochs: int,
        lr: float,
        generator: torch.Generator,
        names: Sequence[str] | None = None,
        batch: int = 32,
        cosine: bool = False,
    ) -> None:
        """Train with Adam in place; incomplete batches are dropped."""
        names = list(self.weights) if names is None else names
        # Fresh leaves: earlier snapshots of the weights must not change with them.
        self.weights = {name: w.clone().requires_grad_(name in names) for name, w in self.weights.items()}
        first = {name: torch.zeros_like(self.weights[name]) for name in names}
        second = {name: torch.zeros_like(self.weights[name]) for name in names}
        step = 0
        count, images = y.shape
        for epoch in range(epochs):
            rate = lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs)) if cosine else lr
            order = torch.stack([torch.randperm(images, generator=generator) for _ in range(count)])
            for start in range(0, images - batch + 1, batch):
                step += 1
                xb, yb = gather_images(x, y, order[:, start : start + batch])
                # The sum over networks of each one's mean loss: every network gets its own gradient.
                loss = functional.cross_entropy(
                    self.logits(xb, training=True).flatten(0, 1), yb.flatten(), reduction="sum"
                )
                gradients = torch.autograd.grad(loss / batch, [self.weights[name] for name in names])
                with torch.no_grad():
                    for name, gradient in zip(names, gradients, strict=True):
                        m, v = first[name], second[name]
                        m.lerp_(gradient, 1 - BETA1)
                        v.lerp_(gradient.square(), 1 - BETA2)
                        denominator = (v / (1 - BETA2**step)).sqrt_().add_(ADAM_EPSILON)
                        self.weights[name].addcdiv_(m, denominator, value=-rate / (1 - BETA1**step))
        self.weights = {name: weight.detach() for name, weight in self.weights.items()}


def gather_images(
    x: Float[Tensor, "networks images 1 height width"],
    y: Int[Tensor, "networks images"],
    index: Int[Tensor, "networks chosen"],
) -> tuple[Float[Tensor, "networks chosen 1 height width"], Int[Tensor, "networks chosen"]]:
    """Take other images for each network.

    Examples
    --------
    >>> x, y = torch.arange(6.0).view(2, 3, 1, 1, 1), torch.arange(6).view(2, 3)
    >>> gather_images(x, y, torch.tensor([[2], [0]]))[1].tolist()
    [[2], [3]]
    """
    return x.gather(1, index[:, :, None, None, None].expand(-1, -1, *x.shape[2:])), y.gather(1, index)


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)
