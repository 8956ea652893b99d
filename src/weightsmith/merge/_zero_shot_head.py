r"""A classification head from text embeddings, so that an image-text network is averaged with its head.

.. math::
    w_k = e^{s} \frac{\sum_j u_{kj}}{\lVert \sum_j u_{kj} \rVert}, \qquad
    u_{kj} = \frac{\text{text}_{kj}}{\lVert \text{text}_{kj} \rVert}, \qquad
    \text{logit}_k = w_k \cdot \frac{x}{\lVert x \rVert} + b_k

Wortsman et al. 2022, arXiv 2109.01903. Legend: ``N`` samples, ``K`` classes, ``T`` templates, ``D`` features.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.errors import NonFiniteError

__all__ = ["ZeroShotHead"]


class ZeroShotHead(nn.Linear):
    """A linear head over normalized features whose weights are the mean embeddings of each class's descriptions.

    Parameters
    ----------
    text : Tensor of shape (K, T, D)
        Embeddings of each class's name in T templates ("a photo of a ...").
    logit_scale : float, default: log(100)
        Logarithm of the scale of the logits, as image-text networks store it.

    Raises
    ------
    NonFiniteError
        If an embedding is zero, NaN or infinite.

    Examples
    --------
    >>> head = ZeroShotHead(torch.eye(3).unsqueeze(1), logit_scale=0.0)
    >>> head(torch.tensor([[0.0, 5.0, 0.0]])).tolist()
    [[0.0, 1.0, 0.0]]
    """

    def __init__(self, text: Float[Tensor, "K T D"], *, logit_scale: float = math.log(100)) -> None:
        super().__init__(text.shape[2], text.shape[0])
        mean_KD = functional.normalize(text.float(), dim=-1).mean(1)
        if not bool(((mean_KD.norm(dim=1) > 0) & mean_KD.isfinite().all(1)).all()):
            raise NonFiniteError("text embeddings of a class", found="zero, NaN or infinity")
        with torch.no_grad():
            self.weight.copy_(math.exp(logit_scale) * functional.normalize(mean_KD, dim=-1))
            self.bias.zero_()

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        """Return the logits of features, which are normalized first, in the head's element type."""
        return super().forward(functional.normalize(x.to(self.weight.dtype), dim=-1))
