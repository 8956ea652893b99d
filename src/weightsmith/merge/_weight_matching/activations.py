r"""Match units by their activations on data: the same assignment, over activations in place of weights.

.. math:: \max_P \; \langle P, Z_a^\top Z_b \rangle

Every layer's activations are one matrix on which one permutation acts, so this is weight matching of those matrices.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Batches, call
from weightsmith.core.errors import CalibrationError, ShapeError
from weightsmith.core.models import StreamMasks, evaluation_mode, find_blocks, token_masks
from weightsmith.core.processes import gather_rows
from weightsmith.core.symmetry import AxisBlocks, Side, Symmetry, activations_noted
from weightsmith.merge._weight_matching.matching import Matching, match_weights

__all__ = ["Similarity", "match_activations"]

Similarity: TypeAlias = Literal["correlation", "product"]


def match_activations(
    first: nn.Module,
    second: nn.Module,
    symmetry: Symmetry,
    calibration: Batches,
    *,
    similarity: Similarity = "correlation",
) -> Matching:
    """Match the second network's units to the first's by their activations on the same data.

    Parameters
    ----------
    first, second : nn.Module
        Of one architecture; run in evaluation mode, only read.
    symmetry : Symmetry
        The groups that may be permuted. A group is matched on the inputs of the layers that read it, after the
        activation function; where there are none, on the outputs of those that write it.
    calibration : Batches
        The data, some hundreds of samples; the activations of all are in memory, in each of several processes those of
        all processes. Batches may differ in length; padding does not count.
    similarity : {"correlation", "product"}, default: "correlation"
        Pearson's, which is 0 for a constant unit; or the mean product, in which units of large activation count more.

    Returns
    -------
    Matching
        Permutations for :meth:`Symmetry.permute`. Objective and distances are those of the activations.

    Raises
    ------
    CalibrationError
        If there are no batches.
    NonFiniteError
        If an activation holds NaN or infinity.
    ShapeError
        If the networks are not of one architecture, or nothing that may be permuted is seen.

    Warns
    -----
    UserWarning
        If groups keep their order because no activation shows them, such as the inner units of fused experts.

    References
    ----------
    Ainsworth, Hayase, Srinivasa, arXiv 2209.04836.

    Examples
    --------
    >>> from weightsmith.core.symmetry import find_symmetry
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> twin = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> symmetry = find_symmetry(model, torch.rand(1, 3))
    >>> swap = {"0.weight[0]": torch.tensor([1, 0, 2, 3])}
    >>> _ = twin.load_state_dict(symmetry.permute(model.state_dict(), swap))
    >>> match_activations(model, twin, symmetry, [torch.randn(64, 3)], similarity="product").objective > 0
    True
    """
    if len(calibration) == 0:
        raise CalibrationError("no batches to match activations on", expected="at least one")
    for whose, model in (("the first model", first), ("the second model", second)):
        symmetry.check_state(model.state_dict(), whose)
    chosen = _chosen(symmetry)
    if not chosen:
        raise ShapeError("no layer's input or output holds what may be permuted", do="Match the weights instead.")
    check_choice("similarity", similarity, Similarity)
    a, b = (_activations(model, chosen, calibration, similarity) for model in (first, second))
    names = {name for dims in chosen.values() for blocks in dims for block in blocks for name in block.groups}
    unseen = [name for name in symmetry.groups if name not in names]
    if unseen:
        warnings.warn(
            f"{len(unseen)} groups are seen in no layer's input or output and keep their order, such as {unseen[:3]}: "
            "match their weights.",
            stacklevel=2,
        )
    seen = replace(
        symmetry.without(unseen, "is not seen in any activation"),
        axes={f"{side} of {name}": ((), *filter(None, dims)) for (name, side), dims in chosen.items()},
        shapes={key: tuple(tensor.shape) for key, tensor in a.items()},
        aliases={},
        buffers=frozenset(),
    )
    found = match_weights(a, b, seen)
    return replace(found, perms=symmetry.identity() | found.perms)


def _chosen(symmetry: Symmetry) -> dict[tuple[str, Side], AxisBlocks]:
    """All inputs; and the outputs with permutations that are in no input."""

    def names(dims: AxisBlocks) -> set[str]:
        return {name for blocks in dims for block in blocks for name in block.groups if name}

    inputs = {key: dims for key, dims in symmetry.activations.items() if key[1] == "input"}
    read = {name for dims in inputs.values() for name in names(dims)}
    written = {
        key: dims for key, dims in symmetry.activations.items() if key[1] == "output" and not names(dims).issubset(read)
    }
    return inputs | written


@torch.no_grad()
def _activations(
    model: nn.Module, chosen: Mapping[tuple[str, Side], AxisBlocks], calibration: Batches, similarity: Similarity
) -> dict[str, Tensor]:
    """One tensor a place, its first axis all samples and positions, standardised for correlations."""
    parts: dict[tuple[str, Side], list[Tensor]] = {key: [] for key in chosen}

    def note(name: str, side: Side, tensor: Tensor) -> None:
        if (name, side) in parts:
            rows = _rows(tensor.detach(), chosen[name, side], masks.now.of(tensor))
            parts[name, side].append(rows.float().cpu())

    with (
        evaluation_mode(model),
        StreamMasks(model, find_blocks(model)) as masks,
        activations_noted(model, {name for name, _ in chosen}, note),
    ):
        for batch in calibration:
            masks.start(token_masks(batch))
            call(model, batch)
    return {
        f"{side} of {name}": _prepare(gather_rows(torch.cat(got))[0], similarity) for (name, side), got in parts.items()
    }


def _rows(
    values: Float[Tensor, "..."], dims: AxisBlocks, mask: Bool[Tensor, "..."] | None
) -> Float[Tensor, "rows ..."]:
    """One row for each index of the axes that are not permuted, without padding."""
    others = [axis for axis in range(values.ndim) if axis >= len(dims) or not dims[axis]]
    if mask is not None and others[:2] == [0, 1] and values.shape[:2] == mask.shape:
        values, others = values[mask], [0, *(axis - 1 for axis in others[2:])]
    return values.movedim(others, [*range(len(others))]).flatten(0, len(others) - 1)


def _prepare(values: Float[Tensor, "rows ..."], similarity: Similarity) -> Float[Tensor, "rows ..."]:
    """Divide by the root of the number of rows, or standardise over them."""
    if similarity == "product":
        return values / len(values) ** 0.5
    values = values - values.mean(0)
    norm = values.square().sum(0).sqrt()
    dead = norm <= norm.max() * 1e-6
    return torch.where(dead, 0.0, values / norm.masked_fill(dead, 1.0))
