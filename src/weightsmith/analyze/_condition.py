r"""Condition numbers of a model's weight matrices, from a module or streamed from its files.

Ludwig, "The Condition Number as a Scale-Invariant Proxy for Information Encoding in Neural Units", arXiv 2506.16289
(2025), reads :math:`\kappa = \sigma_{\max} / \sigma_{\min}` as how specialised a matrix is, and fine-tunes those of the
lowest (:mod:`weightsmith.adapt._kappatune`). By its shape alone a random matrix already has a :math:`\kappa`, 3.7 when
it is three times as long as wide and thousands when it is square, so the report also has the ratio to that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor, nn

from weightsmith.analyze._shared.matrices import Matrix, matrices_of_files, matrices_of_model
from weightsmith.analyze._shared.spectrum import (
    entropy_deficit,
    random_kappa,
    rounding_floor,
    signal_to_noise,
    singular_values,
    stable_rank,
)
from weightsmith.core.choices import check_choice
from weightsmith.core.errors import HyperparameterError, LayerNotFoundError, NonFiniteError
from weightsmith.core.models import VOCABULARY_HEADS
from weightsmith.core.progress import track
from weightsmith.core.results import Result, record

__all__ = ["Condition", "ConditionReport", "Score", "condition", "condition_report"]

Score: TypeAlias = Literal["kappa", "kappa_over_mp", "entropy_deficit"]
Kind: TypeAlias = Literal["module", "parameter", "tensor"]

BATCH_BYTES = 2**26
"""Matrices of one shape are decomposed together, up to this size in float64."""


@dataclass(frozen=True)
class Condition:
    """The condition of one weight matrix, or the mean over the experts that share a parameter.

    Attributes
    ----------
    name : str
        Of the module, or of the parameter for fused experts.
    parameter : str
        Of the parameter.
    kind : {"module", "parameter"}
        ``"parameter"`` for fused experts.
    shape : tuple of int
        Rows and columns, after the number of experts where they are fused.
    kappa : float
        Largest over smallest singular value; infinite for a matrix that is singular in float64.
    reference : float
        What a random matrix of the shape has, :func:`~weightsmith.analyze._shared.spectrum.random_kappa`.
    entropy_deficit : float
        In nats, :func:`~weightsmith.analyze._shared.spectrum.entropy_deficit`.
    stable_rank : float
        Squared Frobenius norm over the largest squared singular value.
    signal_to_noise : float
        :func:`~weightsmith.analyze._shared.spectrum.signal_to_noise`; compare matrices of one shape only.
    sigma_max, sigma_min : float
        Largest and smallest singular value (over all experts).
    rounding : float
        Up to where a singular value may be rounding of the stored weights.
    aliases : tuple of str
        Other modules that hold the same parameter.
    """

    name: str
    parameter: str
    kind: Literal["module", "parameter"]
    shape: tuple[int, ...]
    kappa: float
    reference: float
    entropy_deficit: float
    stable_rank: float
    signal_to_noise: float
    sigma_max: float
    sigma_min: float
    rounding: float
    aliases: tuple[str, ...] = ()

    @property
    def kappa_over_mp(self) -> float:
        """How many times worse conditioned than a random matrix of the shape."""
        return self.kappa / self.reference

    @property
    def reliable(self) -> bool:
        """Whether the smallest singular value is above what rounding may have made of it."""
        return self.sigma_min > self.rounding

    def score(self, score: Score) -> float:
        """The number that matrices are ranked by, low first."""
        if score == "entropy_deficit":
            return self.entropy_deficit / min(self.shape[-2:])  # the sum grows with the size, as kappa does not
        return self.kappa if score == "kappa" else self.kappa_over_mp


@dataclass(frozen=True)
class ConditionReport:
    """The conditions of a model's matrices.

    Attributes
    ----------
    rows : tuple of Condition
        In the order of the model, or of the file.
    score : {"kappa", "kappa_over_mp", "entropy_deficit"}
        What :meth:`select` ranks by.
    skipped : mapping of str to tuple of str
        Weights left out: reason to names.
    """

    rows: tuple[Condition, ...]
    score: Score
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def ranked(self, kind: Kind = "module") -> list[Condition]:
        """The rows of a kind, lowest score first, equal scores by name; ``"tensor"`` means all kinds.

        Raises
        ------
        HyperparameterError
            If there is no such kind.
        """
        check_choice("kind", kind, Kind)
        rows = [row for row in self.rows if kind in ("tensor", row.kind)]
        return sorted(rows, key=lambda row: (row.score(self.score), row.name))

    def select(
        self,
        *,
        top_p: float | None = None,
        num: int | None = None,
        threshold: float | None = None,
        kind: Kind = "module",
    ) -> list[str]:
        """Names of the matrices with the lowest score.

        Parameters
        ----------
        top_p : float, optional
            This share of them, in (0, 1]; rounded down, at least one.
        num : int, optional
            So many, or all if there are fewer; wins over ``top_p``, which wins over ``threshold``.
        threshold : float, optional
            Those whose score is not above this.
        kind : {"module", "parameter", "tensor"}, default: "module"
            Modules (for a PEFT config's ``target_modules``), fused experts (``target_parameters``), or names of
            parameters of both, ranked together (for an optimizer).

        Returns
        -------
        list of str
            Lowest score first; all of the kind when no bound is given.

        Raises
        ------
        HyperparameterError
            If a bound is out of range, no score is below ``threshold``, or there is no such kind.
        """
        rows = self.ranked(kind)
        if num is not None:
            if num < 1:
                raise HyperparameterError("num", found=num, expected=">= 1")
            rows = rows[:num]
        elif top_p is not None:
            if not 0 < top_p <= 1:
                raise HyperparameterError("top_p", found=top_p, expected="0 < top_p <= 1")
            rows = rows[: max(1, int(len(rows) * top_p))]
        elif threshold is not None:
            below = [row for row in rows if row.score(self.score) <= threshold]
            if rows and not below:
                lowest = rows[0].score(self.score)
                raise HyperparameterError("threshold", found=threshold, expected=f"at least the lowest, {lowest:.6g}")
            rows = below
        return [row.parameter if kind == "tensor" else row.name for row in rows]

    def targets(
        self, *, top_p: float | None = None, num: int | None = None, threshold: float | None = None
    ) -> dict[str, list[str] | None]:
        """The selection as PEFT's configurations take it: ``LoraConfig(**report.targets(top_p=0.2))``.

        Modules and fused experts are ranked apart, as :func:`peft.find_kappa_target_modules` does.
        """
        bounds: dict[str, Any] = {"top_p": top_p, "num": num, "threshold": threshold}
        fused = any(row.kind == "parameter" for row in self.rows)
        return {
            "target_modules": self.select(**bounds),
            "target_parameters": self.select(**bounds, kind="parameter") if fused else None,
        }

    def row(self, name: str) -> Condition:
        """The row of a module or parameter.

        Raises
        ------
        LayerNotFoundError
            If there is none.
        """
        for row in self.rows:
            if name in (row.name, row.parameter):
                return row
        why = next((reason for reason, names in self.skipped.items() if name in names), None)
        raise LayerNotFoundError(f"no condition of {name!r}", found=why or f"names such as {self.rows[0].name!r}")

    def table(self, rows: int = 20) -> Table:
        """The ``rows`` lowest scores as a rich table."""
        ranked = self.ranked("tensor")
        table = Table(title=f"lowest {self.score} of {len(ranked)} matrices", title_justify="left")
        table.add_column("matrix")
        for name in ("shape", "kappa", "over random", "entropy deficit", "stable rank", "signal to noise", "reliable"):
            table.add_column(name, justify="right")
        for row in ranked[:rows]:
            numbers = (row.kappa, row.kappa_over_mp, row.entropy_deficit, row.stable_rank, row.signal_to_noise)
            shape = " x ".join(map(str, row.shape))
            table.add_row(row.name, shape, *(f"{n:.4g}" for n in numbers), "yes" if row.reliable else "no")
        return table


def condition_report(
    model: nn.Module | str | os.PathLike[str],
    *,
    score: Score = "kappa_over_mp",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = VOCABULARY_HEADS,
    max_dim: int = 16384,
    device: str | torch.device | None = None,
) -> ConditionReport:
    """Measure the condition of every weight matrix of a model.

    Parameters
    ----------
    model : nn.Module or path-like
        A model (also one with PEFT adapters, of which the base weights are read, or quantised by bitsandbytes), or a
        checkpoint: a folder, a file, or ``embedded:NAME``, read tensor by tensor without building the model.
    score : {"kappa_over_mp", "kappa", "entropy_deficit"}, default: "kappa_over_mp"
        What selections rank by: the condition number over that of a random matrix of the shape, the condition number
        itself (PEFT's and the paper's), or the entropy deficit a singular value.
    include, exclude : str or sequence of str
        Shell patterns on names. By default the layer over the vocabulary is left out; one that is tied to an
        embedding always is.
    max_dim : int, default: 16384
        Matrices with a longer side are left out.
    device : str or torch.device, optional
        Where to compute; by default where the weights are.

    Returns
    -------
    ConditionReport
        One row per matrix: linear layers, Hugging Face's ``Conv1D``, ungrouped convolutions (outputs by the rest),
        fused experts.

    Raises
    ------
    HyperparameterError
        If there is no such score.
    LayerNotFoundError
        If no matrix is left; the message counts why each was left out.
    NonFiniteError
        If a weight holds NaN or infinity.
    UnsupportedModelError
        If weights are on the meta device or packed by a quantiser that cannot give them back.

    Notes
    -----
    In a checkpoint only names and shapes tell what a tensor is: transposed weights are reported with their sides
    swapped, grouped convolutions as if they were not, and the names are those of the file.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    >>> _ = model[0].weight.data.copy_(torch.diag(torch.tensor([4.0, 2.0, 1.0])))
    >>> _ = nn.init.orthogonal_(model[1].weight)
    >>> report = condition_report(model, score="kappa")
    >>> round(report.row("0").kappa, 6), report.select(num=1)
    (4.0, ['1'])
    """
    check_choice("score", score, Score)
    found = matrices_of_model(model) if isinstance(model, nn.Module) else matrices_of_files(model)
    wanted, unwanted = [(p,) if isinstance(p, str) else tuple(p) for p in (include, exclude)]
    skipped: dict[str, list[str]] = {}
    matrices = []
    for matrix in found:
        named = _matches(matrix.name, wanted) and not _matches(matrix.name, unwanted)
        if reason := matrix.skip or _unsuitable(matrix.shape, max_dim) or ("" if named else "excluded by name"):
            skipped.setdefault(reason, []).append(matrix.name)
        else:
            matrices.append(matrix)
    if not matrices:
        why = ", ".join(f"{len(names)} {reason}" for reason, names in skipped.items())
        raise LayerNotFoundError("no weight matrix to measure", found=why or "a model without weight matrices")
    measured = _measure(matrices, torch.device(device) if device is not None else None)
    rows = tuple(measured[matrix.name] for matrix in matrices)
    return ConditionReport(rows, score, {reason: tuple(names) for reason, names in skipped.items()})


def condition(
    model: nn.Module | str | os.PathLike[str],
    *,
    score: Score = "kappa_over_mp",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = VOCABULARY_HEADS,
    max_dim: int = 16384,
) -> Result:
    """Report the condition number of every weight matrix, without building the model.

    Parameters
    ----------
    model : nn.Module or path-like
        A model, or a checkpoint that is read tensor by tensor.
    score : {"kappa_over_mp", "kappa", "entropy_deficit"}, default: "kappa_over_mp"
        What the matrices are ranked by.
    include, exclude : str or sequence of str
        Shell patterns on the matrices' names.
    max_dim : int, default: 16384
        Matrices with a longer side are left out.

    Returns
    -------
    Result
        One row per matrix, in the order of the score; what was left out in the notes.

    Raises
    ------
    HyperparameterError, LayerNotFoundError, NonFiniteError, UnsupportedModelError
        As :func:`condition_report`.

    Examples
    --------
    >>> result = condition(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)))
    >>> len(result.layers), result.totals["matrices"]
    (2, 2)
    """
    with record("condition", score=score, include=include, exclude=exclude, max_dim=max_dim) as result:
        result.reading = True
        report = condition_report(model, score=score, include=include, exclude=exclude, max_dim=max_dim)
        for rank, row in enumerate(report.ranked("tensor"), 1):
            result.layer(
                row.name,
                rank=rank,
                shape=" x ".join(map(str, row.shape)),
                kappa=row.kappa,
                kappa_over_mp=row.kappa_over_mp,
                entropy_deficit=row.entropy_deficit,
                stable_rank=row.stable_rank,
                signal_to_noise=row.signal_to_noise,
                reliable=row.reliable,
            )
        result.title = "condition numbers"
        result.totals = {"matrices": len(report.rows)}
        result.notes += [f"{len(names)} left out: {reason}" for reason, names in report.skipped.items()]
        if noisy := [row.name for row in report.rows if not row.reliable]:
            result.notes.append(
                f"{len(noisy)} matrices such as {noisy[0]} are singular up to the rounding of their entries: their "
                "condition numbers say only that they are high."
            )
    return result


def _measure(matrices: Sequence[Matrix], device: torch.device | None) -> dict[str, Condition]:
    """The conditions by name; matrices of one shape are read and decomposed together."""
    shapes: dict[tuple[int, ...], list[Matrix]] = {}
    for matrix in matrices:
        shapes.setdefault(matrix.shape, []).append(matrix)
    batches = []
    for shape, alike in shapes.items():
        size = max(1, BATCH_BYTES // (8 * math.prod(shape)))
        batches += [alike[start : start + size] for start in range(0, len(alike), size)]
    measured = {}
    for batch in track(batches, "condition numbers"):
        weights = []
        for matrix in batch:
            weight = matrix.read()
            if not bool(weight.isfinite().all()):
                raise NonFiniteError(f"weight {matrix.parameter!r} holds NaN or infinity", do="Repair the checkpoint.")
            weights.append(weight.unsqueeze(0) if weight.ndim == 2 else weight)
        stack_BMN = torch.cat(weights).to(device)
        size = max(1, BATCH_BYTES // (8 * stack_BMN[0].numel()))
        s_BR = torch.cat([singular_values(part_BMN) for part_BMN in stack_BMN.split(size)]).cpu()
        for matrix, s_ER in zip(batch, s_BR.split([len(weight) for weight in weights]), strict=True):
            measured[matrix.name] = _condition(matrix, s_ER, stack_BMN.dtype)
    return measured


def _condition(matrix: Matrix, s_ER: Float[Tensor, "E R"], dtype: torch.dtype) -> Condition:
    """What the singular values say, averaged over experts ``E`` as PEFT does."""
    rows, columns = matrix.shape[-2:]
    largest_E, smallest_E = s_ER[:, 0], s_ER[:, -1]
    singular_E = smallest_E <= torch.finfo(s_ER.dtype).eps * max(rows, columns) * largest_E
    return Condition(
        name=matrix.name,
        parameter=matrix.parameter,
        kind="parameter" if matrix.parameter == matrix.name else "module",
        shape=matrix.shape,
        kappa=(largest_E / smallest_E).masked_fill(singular_E, math.inf).mean().item(),
        reference=random_kappa(rows, columns),
        entropy_deficit=entropy_deficit(s_ER).masked_fill(singular_E, math.inf).mean().item(),
        stable_rank=stable_rank(s_ER).mean().item(),
        signal_to_noise=signal_to_noise(s_ER, rows, columns).mean().item(),
        sigma_max=largest_E.max().item(),
        sigma_min=smallest_E.min().item(),
        rounding=rounding_floor(s_ER, rows, columns, dtype).max().item(),
        aliases=matrix.aliases,
    )


def _unsuitable(shape: tuple[int, ...], max_dim: int) -> str:
    if min(shape[-2:]) < 2:
        return "a single row or column"
    return f"longer than {max_dim}" if max(shape[-2:]) > max_dim else ""


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
