"""The networks that compute the weight of a sample, one per class.

Legend: ``B`` samples, ``C`` classes, ``I`` and ``O`` features.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightsmith.train._meta_rescaling.features import FEATURES

__all__ = ["Rescaler"]


class Rescaler(nn.Module):
    """For each class a network from the features of a sample to its weight.

    Linear, batch norm, ReLU, linear, batch norm, softmax over two; the weight is the first. The batch norms have no
    parameters and always take the statistics of the whole batch, for every class's network: the weights of a batch
    cannot all go to zero.

    Parameters
    ----------
    classes : int
        Number of classes.
    generator : torch.Generator, optional
        Draws the initial weights.

    Examples
    --------
    >>> weights = Rescaler(3)(torch.randn(8, 19), torch.arange(8) % 3)
    >>> weights.shape, bool(((weights > 0) & (weights < 1)).all())
    (torch.Size([8]), True)
    """

    def __init__(self, classes: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0) if generator is None else generator
        self.first_CIO = nn.Parameter(0.02 * torch.randn(classes, FEATURES, FEATURES, generator=draw))
        self.first_bias_CO = nn.Parameter(torch.zeros(classes, FEATURES))
        self.second_CI2 = nn.Parameter(0.02 * torch.randn(classes, FEATURES, 2, generator=draw))
        self.second_bias_C2 = nn.Parameter(torch.zeros(classes, 2))

    def forward(self, features: Float[Tensor, "B 19"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Return the weight of every sample by its class's network."""
        hidden_CBO = _batch_norm(features @ self.first_CIO + self.first_bias_CO[:, None]).relu()
        logits_CB2 = _batch_norm(hidden_CBO @ self.second_CI2 + self.second_bias_C2[:, None])
        weights_CB = logits_CB2.softmax(2)[:, :, 0]
        return weights_CB.gather(0, labels[None])[0]


def _batch_norm(x_CBO: Float[Tensor, "C B O"]) -> Float[Tensor, "C B O"]:
    variance, mean = torch.var_mean(x_CBO, dim=1, keepdim=True, correction=0)
    return (x_CBO - mean) * (variance + 1e-5).rsqrt()
