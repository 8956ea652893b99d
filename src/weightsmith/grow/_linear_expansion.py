r"""TLEG: all blocks are linear in their position; the baseline of stage-wise sharing.

"Transformer as Linear Expansion of Learngene" (Xia et al., AAAI 2024), arXiv 2312.05614. Every parameter of block
:math:`l` (from 0) of a model of depth :math:`L` is

.. math:: W_l = A + \frac{l}{L}\,B ,

with :math:`A` and :math:`B` trained together in one model, usually by :func:`weightsmith.grow.distil`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from weightsmith.core.models import find_stack, fold_parametrizations, get_module
from weightsmith.grow._expand import check_assignment, expand_blocks
from weightsmith.grow._learngene import StagePlan

__all__ = ["LinearExpansion"]

SLOPE_STD = 0.02


class _Line(nn.Module):
    """The parametrization of one parameter at one place of the stack."""

    def __init__(self, slope: nn.Parameter, place: float) -> None:
        super().__init__()
        self.slope, self.place = slope, place

    def forward(self, start: Tensor) -> Tensor:
        return start + self.place * self.slope


class LinearExpansion:
    """Make all blocks of a model linear in their position, train them, and compute the blocks of other depths.

    Parameters
    ----------
    model : nn.Module
        Changed in place: all blocks share the start :math:`A`, the first block's weights, and the slope :math:`B`,
        drawn for matrices and zero for vectors.
    stack : str, optional
        Where the blocks are, as for :func:`weightsmith.core.models.find_stack`.
    generator : torch.Generator, optional
        Draws the slopes.

    Raises
    ------
    LayerNotFoundError, UnsupportedModelError
        As :func:`weightsmith.core.models.find_stack`.

    References
    ----------
    Xia et al., arXiv 2312.05614.

    Examples
    --------
    >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    >>> line = LinearExpansion(model, stack="")
    >>> len(line.expand(7)), sum(p.numel() for p in model.parameters())
    (7, 40)
    """

    def __init__(self, model: nn.Module, *, stack: str | None = None, generator: torch.Generator | None = None) -> None:
        self.model, self.stack = model, stack
        found = find_stack(model, stack)
        starts = dict(found.blocks[0].named_parameters())
        slopes = {name: nn.Parameter(_slope(start, generator)) for name, start in starts.items()}
        for number, block in enumerate(found.blocks):
            for name, start in starts.items():
                path, _, attribute = name.rpartition(".")
                module = get_module(block, path)
                setattr(module, attribute, start)
                line = _Line(slopes[name], number / len(found))
                parametrize.register_parametrization(module, attribute, line)
                module.parametrizations[attribute].original = start  # type: ignore[union-attr, index]

    def expand(self, depth: int) -> nn.Module:
        """Return a new, ordinary model of any depth, its blocks evenly spaced on the line.

        Raises
        ------
        HyperparameterError
            If ``depth`` is not positive.
        """
        found = find_stack(self.model, self.stack)
        places = StagePlan(self.stack, (len(found),)).positions(check_assignment(None, depth, 1, "blocks", True))
        new = expand_blocks(self.model, found, places)
        grown = list(get_module(new, found.path).children())[found.start : found.start + depth]
        for number, block in enumerate(grown):
            for module in block.modules():
                if isinstance(module, _Line):
                    module.place = number / depth
        fold_parametrizations(new)
        return new.eval()


def _slope(start: Tensor, generator: torch.Generator | None) -> Tensor:
    slope = torch.zeros_like(start)
    if start.ndim > 1:
        nn.init.trunc_normal_(slope, std=SLOPE_STD, generator=generator)
    return slope
