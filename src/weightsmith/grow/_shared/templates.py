r"""Weights mixed from templates: the parametrization of :mod:`weightsmith.grow._mixture_growth`, and its coefficients.

A weight is a grid of blocks; block :math:`m` mixes the :math:`n` templates of its set, :math:`m \bmod 2`:

.. math:: W_m = \sum_{j=1}^{n} \alpha_{m,j} \, T_{m \bmod 2,\,j}, \qquad
   W = \begin{pmatrix} W_0 & W_2 \\ W_3 & W_1 \end{pmatrix}

Legend: ``n`` templates per set, ``O`` outputs and ``I`` inputs of a block, ``R`` rows and ``C`` columns of blocks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import HyperparameterError
from weightsmith.core.linalg import upcast

__all__ = ["LAYOUTS", "Growth", "TemplateMix", "check_scale", "coefficients", "grow_coefficients"]

Growth: TypeAlias = Literal["orthogonal", "zero", "copy", "random"]
Layout: TypeAlias = tuple[tuple[int, ...], ...]

MEMBER: Layout = ((0,),)
LAYOUTS: dict[tuple[bool, bool], Layout] = {
    (True, True): ((0, 2), (3, 1)),
    (True, False): ((0,), (1,)),
    (False, True): ((0, 1),),
}
"""The rows of blocks of a grown weight, by whether its outputs and its inputs grow."""


class TemplateMix(nn.Module):
    """Parametrization of a weight by templates (:func:`torch.nn.utils.parametrize.register_parametrization`).

    The parametrized originals are the templates, one tensor ``[n, O, I, ...]`` per set.

    Parameters
    ----------
    alphas : sequence of nn.Parameter
        Coefficients ``[n]`` of each block, by its number.
    layout : tuple of tuple of int
        Rows of block numbers.
    transposed : bool, default: False
        The weight is ``[in, out]``, as in Hugging Face's ``Conv1D``.
    gain : float, default: 1.0
        Factor of the whole weight.

    Examples
    --------
    >>> alphas = [nn.Parameter(torch.tensor([float(m)])) for m in range(4)]
    >>> ones = torch.ones(1, 1, 1)
    >>> TemplateMix(alphas, LAYOUTS[True, True])(ones, ones)
    tensor([[0., 2.],
            [3., 1.]], grad_fn=<_GridBackward>)
    """

    def __init__(
        self, alphas: Sequence[nn.Parameter], layout: Layout = MEMBER, *, transposed: bool = False, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.alphas = nn.ParameterList(alphas)
        self.layout, self.transposed, self.gain = layout, transposed, gain

    def forward(self, *templates: Float[Tensor, "n O I ..."]) -> Tensor:
        """Assemble the weight, in float32 or better, also under autocast."""
        dtype = templates[0].dtype
        with torch.autocast(templates[0].device.type, enabled=False):
            full = [upcast(t) for t in templates]
            if self.layout == LAYOUTS[True, True]:
                alphas = torch.stack([self.alphas[m].to(full[0].dtype) for row in self.layout for m in row])
                weight = _Grid.apply(alphas.unflatten(0, (2, 2)), *full)
            else:
                rows = [self._row(row, full) for row in self.layout]
                weight = torch.cat(rows) if len(rows) > 1 else rows[0]
            if self.gain != 1:
                weight = self.gain * weight
        return (weight.T if self.transposed else weight).to(dtype)

    def right_inverse(self, weight: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the smallest templates that the coefficients mix to a weight; torch calls it on assignment."""
        matrix = weight.T if self.transposed else weight
        grid = [row.chunk(len(self.layout[0]), 1) for row in matrix.chunk(len(self.layout), 0)]
        blocks = {m: grid[r][c] for r, row in enumerate(self.layout) for c, m in enumerate(row)}
        found = []
        with torch.autocast(weight.device.type, enabled=False):
            for number in sorted({m % 2 for m in blocks}):
                members = [m for m in sorted(blocks) if m % 2 == number]
                mixed = upcast(torch.stack([self.alphas[m].detach() for m in members])) * self.gain
                stacked = upcast(torch.stack([blocks[m] for m in members])).to(mixed)
                found.append(torch.tensordot(torch.linalg.pinv(mixed), stacked, 1).to(weight.dtype))
        return found[0] if len(found) == 1 else tuple(found)

    def _row(self, row: tuple[int, ...], templates: Sequence[Tensor]) -> Tensor:
        parts = [torch.tensordot(self.alphas[m].to(templates[m % 2].dtype), templates[m % 2], 1) for m in row]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


class _Grid(torch.autograd.Function):
    """The 2 x 2 grid of blocks, each mixed where it belongs in the weight: nothing is stacked or copied."""

    @staticmethod
    def forward(ctx: Any, alphas_RCn: Tensor, *templates: Tensor) -> Tensor:
        n, outputs, *rest = templates[0].shape
        weight = templates[0].new_empty(2, outputs, 2, *rest)
        for row, sets in enumerate(templates):
            for column in range(2):
                block, alpha_n = weight[row, :, column], alphas_RCn[row, column]
                torch.mul(sets[0], alpha_n[0], out=block)
                for j in range(1, n):
                    block.addcmul_(sets[j], alpha_n[j])
        ctx.save_for_backward(alphas_RCn, *templates)
        return weight.flatten(0, 1).flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        alphas_RCn, *templates = ctx.saved_tensors
        n, outputs = templates[0].shape[:2]
        gradient_ROCI = gradients[0].reshape(2, outputs, 2, -1)
        of_alphas, of_templates = torch.empty_like(alphas_RCn), []
        for row, sets in enumerate(templates):
            found = torch.empty_like(sets, memory_format=torch.contiguous_format)
            for j in range(n):
                template = found[j].view(outputs, -1)
                torch.mul(gradient_ROCI[row, :, 0], alphas_RCn[row, 0, j], out=template)
                template.addcmul_(gradient_ROCI[row, :, 1], alphas_RCn[row, 1, j])
            inputs_OIn = sets.reshape(n, outputs, -1).permute(1, 2, 0)
            of_alphas[row] = torch.bmm(gradient_ROCI[row], inputs_OIn).sum(0)
            of_templates.append(found)
        return of_alphas, *of_templates


def coefficients(
    blocks: int, templates: int, *, shared: bool = False, generator: torch.Generator | None = None
) -> list[nn.Parameter]:
    """Draw the coefficients of a layer's blocks: rows of an orthogonal matrix.

    Parameters
    ----------
    blocks : int
        2 or 4.
    templates : int
        Of each set.
    shared : bool, default: False
        Whether layers share the templates; coefficients are then standard normal, so that layers differ.
    generator : torch.Generator, optional
        Draws them.

    Examples
    --------
    >>> alphas = torch.stack(coefficients(4, 2))
    >>> torch.allclose(alphas.T @ alphas, torch.eye(2), atol=1e-5)
    True
    """
    drawn = torch.randn(blocks, templates, generator=generator)
    if not shared:
        nn.init.orthogonal_(drawn, generator=generator)
    return [nn.Parameter(row.clone()) for row in drawn]


def check_scale(scale: float) -> None:
    """Refuse a scale of new coefficients that is negative or not finite."""
    if not 0 <= scale < math.inf:
        raise HyperparameterError("scale", found=scale, expected="a number >= 0")


@torch.no_grad()
def grow_coefficients(
    alphas: Sequence[nn.Parameter], init: Growth, *, scale: float = 1.0, generator: torch.Generator | None = None
) -> None:
    """Set the coefficients of the two blocks of a grown weight that its members do not have.

    Parameters
    ----------
    alphas : sequence of nn.Parameter
        Those of blocks 0 to 3; 2 and 3 are changed.
    init : {"orthogonal", "zero", "copy", "random"}
        Orthogonal to the member's own coefficients in the same set, and as long; none; the member's plus a random unit
        vector; or uniform.
    scale : float, default: 1.0
        Factor of what is added.
    generator : torch.Generator, optional
        Draws it.

    Raises
    ------
    HyperparameterError
        If ``scale`` is negative or not finite, or ``init`` unknown.

    Examples
    --------
    >>> alphas = [nn.Parameter(torch.tensor(row)) for row in ([1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [0.0, 0.0])]
    >>> grow_coefficients(alphas, "orthogonal")
    >>> [row.abs().tolist() for row in alphas[2:]]
    [[0.0, 1.0], [2.0, 0.0]]
    """
    check_scale(scale)
    check_choice("init", init, Growth)
    n = len(alphas[0])
    if init == "orthogonal" and n == 1:
        warnings.warn(
            "no vector of one coefficient is orthogonal to another: off-diagonal blocks start at 0", stacklevel=2
        )
        init = "zero"
    if init == "zero":
        alphas[2].zero_()
        alphas[3].zero_()
    elif init == "orthogonal":
        for member, new in ((alphas[0], alphas[2]), (alphas[1], alphas[3])):
            own = member.double()  # the drawn coefficients may be nearly parallel to it
            drawn = torch.randn(n, generator=generator).to(own)
            drawn -= (drawn @ own) / (own @ own) * own
            new.copy_(scale * own.norm() * drawn / drawn.norm())
    elif init == "copy":
        added = torch.rand(n, generator=generator).to(alphas[0])
        for member, new in ((alphas[0], alphas[2]), (alphas[1], alphas[3])):
            new.copy_(member + scale * added / added.norm())
    else:
        for new in alphas[2:]:
            new.copy_(scale * torch.rand(n, generator=generator))
