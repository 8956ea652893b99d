r"""Curvature edit: keep the high-curvature part of MLP weights, and the model stops reciting what it memorized.

Merullo, Vatsavaya, Bushnaq, Lewis, "From Memorization to Reasoning in the Spectrum of Loss Curvature", arXiv 2510.24256
(2025). With the Kronecker factors of a layer (:func:`weightsmith.analyze.collect_kfac`), :math:`A = V
\operatorname{diag}(\mu) V^\top` of its inputs and :math:`G = U \operatorname{diag}(\lambda) U^\top` of the gradients of
its outputs,

.. math:: C = U^\top W V, \qquad \Pi_{ij} = \lambda_i \mu_j, \qquad W' = U (C \odot M) V^\top,

where :math:`M` marks the fewest pairs, in falling order of :math:`\Pi`, whose sum reaches the share ``keep`` of the
whole. Directions that many inputs use have high curvature; what was memorized for single inputs has low curvature.

Legend: ``I`` inputs, ``O`` outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightsmith.analyze import KroneckerFactors, collect_kfac
from weightsmith.analyze._curvature import Fisher
from weightsmith.core import io
from weightsmith.core.choices import check_choice
from weightsmith.core.data import Batches, Samples, take
from weightsmith.core.errors import (
    CalibrationError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.linalg import is_finite
from weightsmith.core.models import (
    Layer,
    find_blocks,
    find_layers,
    patterns,
    rewriting,
    unreached,
    weights_in_memory,
    writable,
)
from weightsmith.core.results import Result, record
from weightsmith.core.training import check_finite, refuse_adapters, seed_of
from weightsmith.forget._measures import answer_probabilities, generated_answers

__all__ = [
    "CurvatureEdit",
    "Recitation",
    "curvature_edit",
    "edit_matrix",
    "kept_directions",
    "ranking_agreement",
    "recitation",
]

Criterion = Literal["mass", "loss"]

FEED_FORWARD_INPUTS = (
    "*gate_proj",
    "*up_proj",
    "*mlp.c_fc",
    "*fc1",
    "*intermediate.dense",
    "*.wi",
    "*.wi_0",
    "*.wi_1",
    "*.w1",
    "*.w3",
    "*lin1",
    "*dense_h_to_4h",
)
"""What the matrices into the hidden layer of a feed-forward block are called; the paper edits no others."""

DEPTH, BLOCKS = 0.72, 3
"""The paper's layers 23 to 25 of 32: where the edited blocks start, as a share of the depth, and how many there are."""

FEW_POSITIONS = 4
"""Below this share of a matrix's side, 1 in so many, its moments are decomposed in the space of the positions."""

MEASURED = 32
FEW_SAMPLES = 10


@dataclass(frozen=True)
class CurvatureEdit:
    """One matrix after the edit.

    Attributes
    ----------
    weight_OI : Tensor of shape (out, in)
        The new matrix, float32.
    kept_mass : float
        Share of the curvature that is kept; by the criterion ``"mass"`` at least ``keep``.
    kept_pairs : float
        Share of the pairs of directions that is kept.
    largest_pair : float
        Share of the curvature in the largest pair.
    predicted_loss : float
        Second-order estimate of the increase of the loss per position, ``tr(D' G D A) / 2`` for a change ``D``.
    """

    weight_OI: Float[Tensor, "out in"]
    kept_mass: float
    kept_pairs: float
    largest_pair: float
    predicted_loss: float


@dataclass(frozen=True)
class Recitation:
    """How a model goes on from the beginnings of texts.

    Attributes
    ----------
    strict : float
        Share of texts that it writes on exactly.
    loose : float
        Share whose Levenshtein distance is at most a quarter of the length.
    distance : float
        Mean Levenshtein distance over the length; more is less recitation.
    """

    strict: float
    loose: float
    distance: float


def curvature_edit(
    model: nn.Module,
    calibration: Batches,
    *,
    memorized: Samples | None = None,
    keep: float = 0.6,
    blocks: Sequence[int] | None = None,
    include: str | Sequence[str] = FEED_FORWARD_INPUTS,
    exclude: str | Sequence[str] = (),
    criterion: Criterion = "mass",
    fisher: Fisher = "sampled",
    memory: float = 4.0,
    save_undo: Path | None = None,
    generator: torch.Generator | None = None,
) -> Result:
    """Remove low-curvature directions from feed-forward matrices, so that a model recites less of its training data.

    No list of what to forget is needed. Ordinary text costs some perplexity; arithmetic and facts from memory suffer
    more.

    Parameters
    ----------
    model : nn.Module
        A causal language model or classifier, changed in place; or one opened with
        :func:`~weightsmith.core.io.offloaded`, of which one block is in memory at a time.
    calibration : sequence of batches
        Text or inputs like the training data; the paper takes 20 million tokens, a few hundred thousand give nearly the
        same spectra.
    memorized : sequence of samples, optional
        What it memorized: texts with labels on what it should not write, whose recitation is measured before and after;
        for a classifier samples with the labels it should lose.
    keep : float, default: 0.6
        Share that is kept of the curvature, or of what ``criterion`` orders by, in (0, 1]. From 0.9999 a matrix stays
        unchanged.
    blocks : sequence of int, optional
        Blocks to edit, from 0; by default the three that begin at 72 % of the depth, as in the paper.
    include, exclude : str or sequence of str
        Shell patterns on layer names inside these blocks; by default the matrices into the feed-forward hidden layer.
    criterion : {"mass", "loss"}, default: "mass"
        Order the directions by their curvature, as in the paper, or by curvature times the squared coefficient, which
        is what removing them costs.
    fisher : {"sampled", "exact", "empirical"}, default: "sampled"
        See :func:`weightsmith.analyze.collect_kfac`. Take ``"exact"`` for a classifier: one that fits its data draws
        almost no label but its own.
    memory : float, default: 4.0
        Gigabytes of factors held at a time; layers beyond that need another pass over the data.
    save_undo : path, optional
        Also write the old matrices to this ``.safetensors`` file: :func:`weightsmith.forget.apply_delta` restores them.
    generator : torch.Generator, optional
        Draws the labels of the sampled Fisher.

    Returns
    -------
    Result
        Per layer: ``kept_mass``, ``kept_pairs``, ``predicted_loss``, ``relative_change``.

    Raises
    ------
    CalibrationError
        If no batch reaches a layer, or there is no curvature.
    HyperparameterError
        If a number is out of range.
    LayerNotFoundError
        If no layer matches, or there is no such block.
    NonFiniteError
        If weights, activations or gradients are not finite.
    UnsupportedModelError
        If a matrix is quantized, computed, shared by two layers or under an adapter.

    References
    ----------
    Merullo, Vatsavaya, Bushnaq, Lewis, arXiv 2510.24256.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> result = curvature_edit(model, [torch.randn(64, 8)], keep=0.5, include="*", fisher="exact")
    >>> [row["layer"] for row in result.layers], all(row["kept_mass"] >= 0.5 for row in result.layers)
    (['2'], True)
    """
    _check(keep, criterion)
    if blocks is not None and not all(number >= 0 for number in blocks):
        raise HyperparameterError("blocks", found=list(blocks), expected="numbers >= 0")
    if not memory > 0:
        raise HyperparameterError("memory", found=memory, expected="a number > 0")
    refuse_adapters(model)
    if save_undo is not None:
        io.check_file(save_undo)
    blocks = _numbers(model, blocks)
    layers = _choose(model, blocks, include, exclude)
    on_disk = io.offloaded_of(model) is not None
    if on_disk and (memorized is not None or save_undo is not None):
        raise UnsupportedModelError(
            "a model on disk is not measured and has no undo file",
            found="memorized" if memorized is not None else "save_undo",
            do="Leave it out; the checkpoint itself does not change.",
        )
    if not on_disk:
        check_finite(model)
    hyper: dict[str, Any] = {"keep": keep, "blocks": blocks, "include": include, "exclude": exclude}
    hyper |= {"criterion": criterion, "fisher": fisher, "memory": memory, "save_undo": save_undo}
    with record("curvature-edit", seed=seed_of(generator), **hyper) as result:
        if memorized is not None:
            result.before |= _measured(model, memorized)
        edits: dict[str, Tensor] = {}
        for group in _groups(layers, memory):
            factors = collect_kfac(model, calibration, group, fisher=fisher, generator=generator)
            for layer in group:
                with weights_in_memory(model, layer.module):
                    edits[layer.name] = _edit(layer, factors.pop(layer.name), keep, criterion, result)
        before = {} if save_undo is None else {layer.name: layer.weight.detach().clone() for layer in layers}
        with rewriting(model, None, [layer.name for layer in layers]) as visited, torch.no_grad():
            for block in visited:
                for layer in block.layers:
                    layer.write(edits[layer.name])
            if memorized is not None:
                result.after |= _measured(model, memorized)
            if save_undo is not None:
                pairs = [(f"{layer.name}.{layer.parameter}", layer) for layer in layers]
                new, old = {n: each.weight for n, each in pairs}, {n: before[each.name] for n, each in pairs}
                io.save_delta(io.SparseDelta.between(new, old), save_undo)
        result.totals = {"layers": len(layers), "predicted_loss": sum(row["predicted_loss"] for row in result.layers)}
        result.notes += unreached(model, find_layers(model))
    return result


def edit_matrix(
    weight_OI: Float[Tensor, "out in"],
    factors: KroneckerFactors,
    *,
    keep: float = 0.6,
    criterion: Criterion = "mass",
) -> CurvatureEdit:
    """Project one weight matrix onto its directions of highest curvature.

    Parameters
    ----------
    weight_OI : Tensor of shape (out, in)
        The matrix; it does not change.
    factors : KroneckerFactors
        Of its layer. With the identity for the gradients only the inputs count: the control that does as well.
    keep : float, default: 0.6
        Share that is kept of the curvature, or of what ``criterion`` orders by, in (0, 1].
    criterion : {"mass", "loss"}, default: "mass"
        See :func:`curvature_edit`.

    Raises
    ------
    CalibrationError
        If there is no curvature.
    HyperparameterError
        If ``keep`` is not in (0, 1], or there is no such criterion.
    NonFiniteError
        If a factor holds NaN or infinity.
    ShapeError
        If the factors are not those of the matrix.

    Examples
    --------
    >>> factors = KroneckerFactors(torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([3.0, 1.0])), 1, 1.0)
    >>> edit_matrix(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), factors, keep=0.75).weight_OI
    tensor([[1., 2.],
            [0., 0.]])
    """
    _check(keep, criterion)
    a_II, g_OO = factors.inputs_II, factors.gradients_OO
    if (g_OO.shape[0], a_II.shape[0]) != tuple(weight_OI.shape):
        raise ShapeError(
            "curvature factors",
            found=f"{tuple(g_OO.shape)} for outputs, {tuple(a_II.shape)} for inputs",
            expected=f"those of a matrix {tuple(weight_OI.shape)}; Conv1D holds its transpose",
        )
    if not (is_finite(a_II) and is_finite(g_OO)):
        raise NonFiniteError("curvature factors hold NaN or infinity")
    if float(g_OO.trace()) <= 0 or float(a_II.trace()) <= 0:
        raise CalibrationError(
            "there is no curvature: all gradients are zero",
            do="Use the sampled or exact Fisher or more data; the empirical one vanishes where the model fits.",
        )
    if keep >= 0.9999:
        return CurvatureEdit(weight_OI.detach().float(), 1.0, 1.0, 0.0, 0.0)
    mu_I, v_II = _eigen(a_II, factors.positions)
    lambda_O, u_OO = _eigen(g_OO, factors.positions)
    coefficients_OI = u_OO.T @ weight_OI.detach().float() @ v_II
    if criterion == "mass":
        kept_OI = kept_directions(lambda_O, mu_I, keep)
    else:
        kept_OI = _first_to_reach(lambda_O[:, None] * mu_I * coefficients_OI.square(), keep)
    pairs = lambda_O[:, None].double() * mu_I.double()
    dropped = (pairs * coefficients_OI.double().square())[~kept_OI].sum()
    return CurvatureEdit(
        u_OO @ (coefficients_OI * kept_OI) @ v_II.T,
        float(pairs[kept_OI].sum() / pairs.sum()),
        float(kept_OI.sum()) / weight_OI.numel(),
        float(pairs[0, 0] / pairs.sum()),
        float(dropped / 2),
    )


def kept_directions(
    rows_O: Float[Tensor, "out"], columns_I: Float[Tensor, "in"], keep: float
) -> Bool[Tensor, "out in"]:
    """Mark the fewest pairs of two spectra, in falling order of their product, that reach a share of the sum of all.

    Without sorting the pairs: a threshold on the product is found by bisection, since of every row a prefix of the
    columns is above it. Of equal products the first ones count.

    Parameters
    ----------
    rows_O, columns_I : Tensor of shape (out,) and (in,)
        Falling, >= 0.
    keep : float
        Share of the sum, in (0, 1].

    Examples
    --------
    >>> kept_directions(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0]), 0.76).long()
    tensor([[1, 1],
            [1, 0]])
    """
    rows, columns = rows_O.double(), columns_I.double()
    rising, sums = columns.flip(0).contiguous(), _prefix_sums(columns.cumsum(0))
    target = keep * float(rows.sum() * columns.sum()) * (1 - 1e-12)
    positive = rows.clamp(min=torch.finfo(torch.float64).tiny)

    def prefixes(bound: float) -> Tensor:
        return len(columns) - torch.searchsorted(rising, bound / positive)

    def mass(lengths: Tensor) -> float:
        return float((rows * sums[lengths]).sum())

    low, high = 0.0, float(rows[0] * columns[0]) * (1 + 1e-12)  # low reaches the target, high does not
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if mass(prefixes(middle)) >= target else (low, middle)
    lengths, enough = prefixes(high), prefixes(low)
    place = torch.arange(len(columns))
    mask = (place < lengths[:, None].cpu()).to(rows.device)
    missing, total = target, mass(lengths)
    between = ((place < enough[:, None].cpu()).to(rows.device) & ~mask).nonzero()
    products = rows[between[:, 0]] * columns[between[:, 1]]
    for index in products.argsort(descending=True, stable=True).tolist():
        if total >= missing:
            break
        total += float(products[index])
        mask[tuple(between[index].tolist())] = True
    return mask


def _prefix_sums(sums: Tensor) -> Tensor:
    """Sums of the first 0, 1, 2, ... numbers."""
    return torch.cat([sums.new_zeros(1), sums])


def recitation(answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Recitation:
    """Compare what a model wrote with what it should not write, token by token.

    Parameters
    ----------
    answers : sequence of tuple
        Token ids that the model wrote and those of the text.

    Raises
    ------
    CalibrationError
        If there are none.

    Examples
    --------
    >>> recitation([((1, 3, 4, 5), (1, 2, 3, 4))])
    Recitation(strict=0.0, loose=0.0, distance=0.5)
    """
    if not answers:
        raise CalibrationError("no memorized texts", expected="at least one")
    distances = [_levenshtein(ours, theirs) / max(len(theirs), 1) for ours, theirs in answers]
    return Recitation(
        sum(distance == 0 for distance in distances) / len(distances),
        sum(1 - distance >= 0.75 for distance in distances) / len(distances),
        sum(distances) / len(distances),
    )


def ranking_agreement(
    before: Float[Tensor, "... vocabulary"], after: Float[Tensor, "... vocabulary"], *, k: int = 10
) -> Float[Tensor, "..."]:
    """Compare the most likely tokens of an edited model with those of the model before (nDCG, as the paper has it).

    A token of the edited model's ``k`` most likely ones counts ``k`` at the first rank down to 1 at the last, if it is
    among those of the model before, discounted by the logarithm of its rank.

    Parameters
    ----------
    before, after : Tensor of shape (..., vocabulary)
        Logits of both models at the same positions.
    k : int, default: 10
        How many tokens, 1 to the size of the vocabulary.

    Returns
    -------
    Tensor of shape (...)
        In [0, 1]; 1 where both have the same tokens.

    Raises
    ------
    HyperparameterError
        If ``k`` is out of range.
    ShapeError
        If the shapes differ.

    Examples
    --------
    >>> round(ranking_agreement(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([2.0, 4.0, 1.0, 3.0]), k=3).item(), 6)
    0.735007
    """
    if before.shape != after.shape:
        raise ShapeError("logits after the edit", found=tuple(after.shape), expected=tuple(before.shape))
    if not 1 <= k <= before.shape[-1]:
        raise HyperparameterError("k", found=k, expected=f"1 to {before.shape[-1]}")
    theirs, ours = before.topk(k).indices, after.topk(k).indices
    worth = torch.arange(k, 0, -1, device=ours.device) / torch.arange(2, k + 2, device=ours.device).log2()
    return ((ours[..., :, None] == theirs[..., None, :]).any(-1) * worth).sum(-1) / worth.sum()


def _levenshtein(ours: Sequence[int], theirs: Sequence[int]) -> int:
    row = list(range(len(theirs) + 1))
    for place, token in enumerate(ours, 1):
        diagonal, row[0] = row[0], place
        for other, expected in enumerate(theirs, 1):
            change = diagonal + (token != expected)
            diagonal, row[other] = row[other], min(change, row[other] + 1, row[other - 1] + 1)
    return row[-1]


def _numbers(model: nn.Module, blocks: Sequence[int] | None) -> list[int]:
    """The blocks to edit; by default those at the paper's depth."""
    count = len(find_blocks(model))
    wanted = [*range(int(DEPTH * count), count)][:BLOCKS] if blocks is None else list(blocks)
    if not wanted or not all(0 <= number < count for number in wanted):
        raise LayerNotFoundError("blocks", found=wanted, expected=f"numbers from 0 to {count - 1}")
    return wanted


def _choose(
    model: nn.Module, wanted: Sequence[int], include: str | Sequence[str], exclude: str | Sequence[str]
) -> list[Layer]:
    """The layers to edit, or a refusal that names what is wrong."""
    found = list(find_blocks(model))
    inside = [f"{found[number]}." if found[number] else "" for number in wanted]
    own = patterns(include) != FEED_FORWARD_INPUTS  # of the default patterns most match nothing in a model
    matching = find_layers(model, include, exclude, strict=own)
    layers = [layer for layer in matching if any(f"{layer.name}.".startswith(b) for b in inside)]
    if not layers:
        raise LayerNotFoundError(
            f"no matrix into a feed-forward hidden layer in blocks {wanted}",
            found=f"layers such as {[layer.name for layer in find_layers(model)][:4]}",
            do="Name them with include.",
        )
    writable(layers)
    if shared := [layer.name for layer in layers if layer.aliases]:
        raise UnsupportedModelError(f"{shared[0]!r} is shared by several layers", do="Leave it out with exclude.")
    return layers


def _groups(layers: Sequence[Layer], memory: float) -> list[list[Layer]]:
    """Layers whose factors fit into the memory together."""
    groups: list[list[Layer]] = []
    room = 0.0
    for layer in layers:
        rows, columns = layer.weight_OI.shape
        size = 4e-9 * (rows**2 + columns**2)
        if not groups or room < size:
            groups.append([])
            room = memory
        groups[-1].append(layer)
        room -= size
    return groups


def _check(keep: float, criterion: str) -> None:
    if not 0 < keep <= 1:
        raise HyperparameterError("keep", found=keep, expected="0 < keep <= 1")
    check_choice("criterion", criterion, Criterion)


def _edit(layer: Layer, factors: KroneckerFactors, keep: float, criterion: Criterion, result: Result) -> Tensor:
    try:
        edit = edit_matrix(layer.weight_OI, factors, keep=keep, criterion=criterion)
    except (CalibrationError, NonFiniteError) as error:
        raise type(error)(f"layer {layer.name!r}: {error}") from error
    old_OI = layer.weight_OI.float()
    change = (edit.weight_OI - old_OI).norm() / old_OI.norm().clamp_min(1e-12)
    result.layer(
        layer.name,
        kept_mass=edit.kept_mass,
        kept_pairs=edit.kept_pairs,
        predicted_loss=edit.predicted_loss,
        relative_change=float(change),
    )
    if edit.largest_pair > keep:
        result.notes.append(
            f"One pair of directions of {layer.name!r} holds {edit.largest_pair:.0%} of its curvature: a few "
            "positions, such as the first token, or channels dominate. Exclude the layer or keep more."
        )
    if 0 < factors.effective_samples < FEW_SAMPLES:
        result.notes.append(
            f"The curvature of {layer.name!r} comes from about {factors.effective_samples:.0f} samples: give more "
            "data, or the exact Fisher."
        )
    return edit.weight_OI.to(layer.weight.dtype)


def _eigen(moments: Float[Tensor, "n n"], positions: int) -> tuple[Float[Tensor, "r"], Float[Tensor, "n r"]]:
    """Eigenvalues, falling and not negative, and eigenvectors; of moments of few positions only those not zero."""
    if FEW_POSITIONS * positions <= len(moments):
        # moments of N positions have rank N: products with N random vectors span all that is not zero
        generator = torch.Generator().manual_seed(0)
        sketch = torch.randn(len(moments), positions + 8, generator=generator).to(moments)
        basis = torch.linalg.qr(moments @ sketch).Q
        inner = basis.T @ moments @ basis
        if abs(inner.trace() - moments.trace()) <= 1e-5 * moments.trace():  # factors of a user's own may have any rank
            values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
            return values.flip(0).clamp(min=0), basis @ vectors.flip(1)
    try:
        values, vectors = torch.linalg.eigh(moments.float())
    except torch.linalg.LinAlgError:
        values, vectors = torch.linalg.eigh(moments.double())
    return values.float().flip(0).clamp(min=0), vectors.float().flip(1)


def _first_to_reach(cost_OI: Float[Tensor, "out in"], keep: float) -> Bool[Tensor, "out in"]:
    """Mark the fewest entries, largest first, that reach a share of the sum."""
    values, order = cost_OI.double().flatten().sort(descending=True, stable=True)
    count = int((values.cumsum(0) < keep * values.sum() * (1 - 1e-12)).sum()) + 1
    mask = torch.zeros(cost_OI.numel(), dtype=torch.bool, device=cost_OI.device)
    mask[order[:count]] = True
    return mask.view(cost_OI.shape)


def _measured(model: nn.Module, memorized: Samples) -> dict[str, float]:
    """How much a model still holds of what it memorized: what it writes, or how likely it finds the labels."""
    samples = take(memorized, 0, MEASURED)
    writes: Any = getattr(model, "can_generate", None)
    if writes is None or not writes():
        return {"probability_memorized": float(answer_probabilities(model, samples).mean())}
    found = recitation([(ours, theirs) for _, ours, theirs in generated_answers(model, samples)])
    return {"recited_strict": found.strict, "recited_loose": found.loose, "recitation_distance": found.distance}
