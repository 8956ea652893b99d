r"""Score how much each input channel of a layer contributes to its outputs, from second moments of the inputs.

Kashyap, Murti, Nayak, Narshana, Bhattacharyya, "ModHiFi: Identifying High Fidelity predictive components for Model
Modification", 2025, arXiv 2511.19566. With weights :math:`w_c` of output :math:`c`, contributions
:math:`A_{ci} = w_{ci} \phi_i` and the second moments :math:`S = E[\phi \phi^\top]`:

.. math::
    R_{ci} = E\langle Y_c, A_{ci} \rangle = w_{ci} (S w_c)_i, \qquad
    s_{ci} = \frac{R_{ci}^2}{E\lVert A_{ci} \rVert^2 \, E\lVert Y_c \rVert^2}

Legend: ``O`` outputs, ``I`` inputs (columns of the weight), ``C`` channels, ``B`` columns of one channel.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightsmith.core.statistics import Gram

__all__ = ["PairScore", "contributions", "pair_scores", "second_moments"]

PairScore: TypeAlias = Literal["saliency", "fidelity"]
"""The two scores of a pair of an output and an input channel."""


def second_moments(gram: Gram, *, center: bool = False) -> Float[Tensor, "in in"]:
    """Return the mean product of every two inputs, about their means where ``center`` is set.

    Examples
    --------
    >>> from torch import nn
    >>> from weightsmith.core.models import Layer
    >>> gram = Gram(Layer("fc", nn.Linear(2, 1)))
    >>> gram.update(torch.tensor([[[1.0, 0.0], [3.0, 0.0]]]))
    >>> second_moments(gram)[0, 0].item(), second_moments(gram, center=True)[0, 0].item()
    (5.0, 1.0)
    """
    return gram.moment_II.addr(gram.mean_I, gram.mean_I, alpha=-1) if center else gram.moment_II


def contributions(
    weight_OI: Float[Tensor, "out in"], moment_II: Float[Tensor, "in in"], columns_CB: Int[Tensor, "channels columns"]
) -> tuple[Float[Tensor, "out channels"], Float[Tensor, "out channels"], Float[Tensor, "out"]]:
    """Return the saliency and the energy of each pair of output and channel, and the energy of each output.

    Parameters
    ----------
    weight_OI : Tensor of shape (out, in)
        The weight.
    moment_II : Tensor of shape (in, in)
        Second moments of the inputs.
    columns_CB : Tensor of shape (channels, columns)
        The columns of the weight that belong to each channel: one for a linear layer, the kernel's for a convolution.

    Examples
    --------
    >>> saliency, energy, output = contributions(
    ...     torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.5], [0.5, 2.0]]), torch.tensor([[0], [1]])
    ... )
    >>> saliency.tolist(), energy.tolist(), output.tolist()
    ([[5.0, 3.0]], [[4.0, 2.0]], [8.0])
    """
    product_OI = weight_OI * (weight_OI @ moment_II)
    weight_OCB = weight_OI[:, columns_CB]
    blocks_CBB = moment_II[columns_CB[:, :, None], columns_CB[:, None, :]]
    energy_OC = torch.einsum("ocb,cbd,ocd->oc", weight_OCB, blocks_CBB, weight_OCB)
    return product_OI[:, columns_CB].sum(-1), energy_OC.clamp(min=0), product_OI.sum(1).clamp(min=0)


def pair_scores(
    weight_OI: Float[Tensor, "out in"],
    moment_II: Float[Tensor, "in in"],
    columns_CB: Int[Tensor, "channels columns"] | None = None,
    *,
    score: PairScore = "saliency",
) -> Float[Tensor, "out channels"]:
    """Score each pair of output and input channel.

    Parameters
    ----------
    weight_OI, moment_II, columns_CB
        As for :func:`contributions`; one column per channel by default.
    score : {"saliency", "fidelity"}, default: "saliency"
        Saliency sums to the output's energy over the channels. Fidelity is the squared correlation of contribution and
        output, 0 where either is 0.

    Examples
    --------
    >>> pair_scores(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.5], [0.5, 2.0]]), score="fidelity")
    tensor([[0.7812, 0.5625]])
    """
    if columns_CB is None:
        columns_CB = torch.arange(weight_OI.shape[1], device=weight_OI.device)[:, None]
    saliency_OC, energy_OC, output_O = contributions(weight_OI, moment_II, columns_CB)
    if score == "saliency":
        return saliency_OC
    both_OC = energy_OC * output_O[:, None]
    return torch.where(both_OC > 0, saliency_OC.square() / both_OC, 0)
