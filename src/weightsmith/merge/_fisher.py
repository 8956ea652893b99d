r"""The Fisher-weighted average: each weight is averaged by how much each network's predictions depend on it.

.. math::
    \theta = \frac{c_0 \theta_0 + c_1 \theta_1}{c_0 + c_1}, \qquad
    c_0 = (1 - \alpha) \max(F_0, \epsilon), \quad c_1 = \alpha \max(F_1, \epsilon)

with the diagonal Fisher information :math:`F = E_x E_{y \sim p(y | x)} [(\partial_\theta \log p(y | x))^2]`.

Matena, Raffel 2022, arXiv 2111.09832.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from weightsmith.core.data import Batch, Batches, keywords, to_model, without_labels
from weightsmith.core.errors import CalibrationError, HyperparameterError, UnsupportedModelError
from weightsmith.core.io import (
    CheckpointReader,
    StateDict,
    StoredNames,
    TemporaryFolder,
    TensorMap,
    TensorSpec,
    check_output,
    load_model,
)
from weightsmith.core.linalg import upcast
from weightsmith.core.models import evaluation_mode
from weightsmith.core.processes import all_reduce_sum
from weightsmith.core.results import Result
from weightsmith.core.training import logits_of, seed_of
from weightsmith.merge._shared.merging import check_two, merge_checkpoints, merge_state_dicts

__all__ = ["diagonal_fisher", "fisher", "fisher_average"]


@torch.no_grad()
def diagonal_fisher(
    model: nn.Module, batches: Batches, *, chunk: int = 16, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Estimate the diagonal Fisher information: how much a classifier's predictions depend on each weight.

    One gradient per sample, of the log-probability of a label drawn from the model itself, squared and averaged.

    Parameters
    ----------
    model : nn.Module
        Its output is logits ``[batch, classes]``, or has them as ``logits``. Not changed.
    batches : Batches
        Inputs; labels among them are not read. Several processes add up, each with batches of its own.
    chunk : int, default: 16
        Samples whose gradients are held at a time; each takes the memory of the weights.
    generator : torch.Generator, optional
        Draws the labels.

    Returns
    -------
    dict of str to Tensor
        Float32, by parameter name; frozen parameters are left out.

    Raises
    ------
    CalibrationError
        If there are no batches.
    UnsupportedModelError
        If the output is not one row of logits per sample.

    Examples
    --------
    >>> model = nn.Linear(1, 2, bias=False)
    >>> _ = model.weight.data.zero_()
    >>> diagonal_fisher(model, [torch.tensor([[2.0]])])["weight"].flatten()
    tensor([1., 1.])
    """
    if len(batches) == 0:
        raise CalibrationError("no batches to estimate the Fisher information from", expected="at least one")
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    total = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in weights.items()}

    def log_likelihood(weights: dict[str, Tensor], sample: Any, label: Tensor) -> Tensor:
        logits = logits_of(functional_call(model, weights, *_arguments(_map(sample, lambda x: x.unsqueeze(0)))))
        return logits[0].float().log_softmax(-1).gather(0, label[None])[0]

    one = grad(log_likelihood)
    many = vmap(one, in_dims=(None, 0, 0), chunk_size=chunk)

    def squares(weights: dict[str, Tensor], batch: Batch, labels: Tensor) -> dict[str, Tensor]:
        """The sum over the batch of the squared gradients."""
        try:
            return {name: value.float().square().sum(0) for name, value in many(weights, batch, labels).items()}
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
        # models that read their inputs' values, as Hugging Face's do with masks, take one backward pass per sample
        total = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in weights.items()}
        for row, label in enumerate(labels):
            sample = _map(batch, lambda x, row=row: x[row])
            for name, value in one(weights, sample, label).items():
                total[name] += value.float().square()
        return total

    count = 0
    with evaluation_mode(model):
        for batch in (to_model(without_labels(model, each), model) for each in batches):
            batch = keywords(model, batch) if isinstance(batch, Mapping) else batch
            logits = logits_of(functional_call(model, weights, *_arguments(batch)))
            if logits.ndim != 2:
                raise UnsupportedModelError(
                    "Fisher information", found=f"output {tuple(logits.shape)}", expected="logits [batch, classes]"
                )
            labels = logits.float().softmax(-1).multinomial(1, generator=generator)[:, 0]
            for name, value in squares(weights, batch, labels).items():
                total[name] += value
            count += len(labels)
    samples = torch.tensor(count)
    all_reduce_sum(samples, *total.values())
    return {name: value / int(samples) for name, value in total.items()}


def fisher_average(
    start: StateDict,
    end: StateDict,
    start_fisher: StateDict,
    end_fisher: StateDict,
    *,
    alpha: float = 0.5,
    floor: float = 1e-8,
) -> dict[str, Tensor]:
    """Average each weight by how much each network's predictions depend on it.

    Parameters
    ----------
    start, end : state dict
        Of one architecture.
    start_fisher, end_fisher : state dict
        Diagonals of their Fisher information (:func:`diagonal_fisher`); a tensor that one lacks
        counts as ones.
    alpha : float, default: 0.5
        In [0, 1]: the share of ``end`` where the Fisher informations are equal.
    floor : float, default: 1e-8
        Positive: the least information.

    Returns
    -------
    dict of str to Tensor
        ``(c0 start + c1 end) / (c0 + c1)`` with ``c0 = (1 - alpha) max(F0, floor)`` and ``c1 = alpha max(F1, floor)``.

    Raises
    ------
    HyperparameterError
        If ``alpha`` or ``floor`` is out of range.
    ShapeError, NonFiniteError
        If the state dicts do not fit or hold NaN.

    Examples
    --------
    >>> first, second = {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}
    >>> fisher_average(first, second, {"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])})
    {'w': tensor([1.5000])}
    """
    ones = torch.ones(())
    fishers = [
        {name: one.get(name, ones.expand(w.shape)) for name, w in end.items()} for one in (start_fisher, end_fisher)
    ]
    return merge_state_dicts([start, end], _fisher(alpha, floor), weights=fishers)


def fisher(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    batches: Batches | None = None,
    fishers: Sequence[Path] = (),
    alpha: float = 0.5,
    floor: float = 1e-8,
    overwrite: bool = False,
    generator: torch.Generator | None = None,
) -> Result:
    """Average two checkpoints on disk, each weight by how much each network's predictions depend on it.

    Parameters
    ----------
    checkpoints : sequence of path
        Two networks of one architecture.
    out : path
        Folder for the result; small files come from the second checkpoint.
    batches : Batches, optional
        Inputs of classifiers, from which the Fisher informations are estimated by :func:`diagonal_fisher`: each
        network is loaded for this.
    fishers : sequence of path
        In place of ``batches``, two ``.safetensors`` files or folders with the diagonals of the Fisher informations,
        as :func:`diagonal_fisher` returns them, in the order of the networks. A tensor that one lacks counts as ones.
    alpha : float, default: 0.5
        In [0, 1]: the share of the second network where the informations are equal.
    floor : float, default: 1e-8
        Positive: the least information.
    overwrite : bool, default: False
        Replace what is at ``out``.
    generator : torch.Generator, optional
        Draws the labels of the estimate; seed 0 by default.

    Returns
    -------
    Result
        Counts of tensors and weights.

    Raises
    ------
    HyperparameterError, ShapeError, NonFiniteError, CheckpointError
        If the numbers or the checkpoints do not fit; nothing is written.

    References
    ----------
    Matena, Raffel. "Merging Models with Fisher-Weighted Averaging". NeurIPS 2022. arXiv:2111.09832.
    """
    check_two(checkpoints)
    generator = generator or torch.Generator().manual_seed(0)
    rule = _fisher(alpha, floor)
    if batches is not None and fishers:
        raise HyperparameterError("fishers", found=f"{len(fishers)} files and batches", expected="one of them")
    if batches is None and len(fishers) != 2:
        raise HyperparameterError(
            "fishers", found=len(fishers), expected="two files, one per checkpoint, or batches to estimate them from"
        )
    hyper = {"fishers": [*fishers], "alpha": alpha, "floor": floor}
    specs = CheckpointReader(checkpoints[1]).specs
    with TemporaryFolder() as folder:  # before OUT may be refused: it removes what a killed run left
        check_output(out, overwrite=overwrite, inputs=checkpoints)
        if batches is not None:
            fishers = [Path(folder, f"{number}.safetensors") for number in range(2)]
            for checkpoint, file in zip(checkpoints, fishers, strict=True):
                model = load_model(checkpoint)
                stored = StoredNames(model, CheckpointReader(checkpoint))
                parts: dict[str, Tensor] = {}
                for name, diagonal in diagonal_fisher(model, batches, generator=generator).items():
                    parts |= stored.parts(name, diagonal)
                save_file(parts, file)
        weights = [_OnesElsewhere(path, specs) for path in fishers]
        lacking = [f"{name!r} of {each.path}" for each in weights for name in each.missing]
        few = ", ".join(lacking[:3])
        return merge_checkpoints(
            "fisher",
            checkpoints,
            out,
            rule,
            weights=weights,
            overwrite=overwrite,
            seed=seed_of(generator),
            hyper=hyper,
            notes=[f"No Fisher information, counted as ones: {len(lacking)} tensors, such as {few}."] * bool(lacking),
        )


class _OnesElsewhere(CheckpointReader):
    """A checkpoint of weights that are one where it lacks a tensor of the networks."""

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec]) -> None:
        super().__init__(path)
        self._ones = specs.keys() - self.specs.keys()
        self.missing = [
            name
            for name in specs
            if name in self._ones and (specs[name].dtype.is_floating_point or specs[name].dtype.is_complex)
        ]
        self.specs |= {name: TensorSpec(torch.float32, specs[name].shape) for name in self._ones}

    def read(self, key: str, begin: int = 0, end: int | None = None, *, out: Tensor | None = None) -> Tensor:
        if key not in self._ones:
            return super().read(key, begin, end, out=out)
        return torch.ones(self.specs[key].numel)[begin:end] if out is None else out.fill_(1)


def _fisher(alpha: float, floor: float) -> TensorMap:
    if not 0 <= alpha <= 1:
        raise HyperparameterError("alpha", found=alpha, expected="in [0, 1]")
    if not 0 < floor < math.inf:
        raise HyperparameterError("floor", found=floor, expected="a positive number")

    def chunk_map(parts: Sequence[Tensor], out: Tensor) -> Tensor:
        start_fisher, end_fisher, start, end = map(upcast, parts)
        # NaN passes through clamp_min, so a broken Fisher is found in the result
        first, second = (1 - alpha) * start_fisher.clamp_min(floor), alpha * end_fisher.clamp_min(floor)
        # the share of the second, not the quotient of the sums: exact at both ends, and no overflow
        return out.copy_(torch.lerp(start, end, (second / (first + second)).to(start.dtype)))

    return lambda name, chunks: chunk_map


def _arguments(batch: Batch) -> tuple[Any, ...]:
    """A batch as functional_call takes it: positional arguments, then keyword arguments."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, (tuple, list)) else (batch,),)


def _map(batch: Any, function: Any) -> Any:
    if isinstance(batch, Mapping):
        return {key: function(value) for key, value in batch.items()}
    return tuple(map(function, batch)) if isinstance(batch, (tuple, list)) else function(batch)
