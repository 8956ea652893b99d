"""What activation sparsity does to a model, as a small JSON file that lies beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from weightsmith.core.errors import CheckpointError, HyperparameterError

__all__ = ["FILE", "Plan", "Projection", "Select", "check_sparsity"]

FILE = "wina.json"
VERSION = 1

Select = Literal["threshold", "topk"]


@dataclass(frozen=True)
class Projection:
    """How one layer selects its inputs.

    Attributes
    ----------
    sparsity : float
        Share of the inputs to be dropped, in [0, 1].
    threshold : float
        An input is dropped when its score is at most this; infinite drops all.
    norms : bool
        Whether the score is the input's magnitude times its column's norm, or the magnitude alone.
    """

    sparsity: float
    threshold: float
    norms: bool


@dataclass(frozen=True)
class Plan:
    """The selection of every layer.

    Attributes
    ----------
    sparsity : float
        The sparsity that was asked for.
    select : {"threshold", "topk"}
        Inputs are selected by a fixed threshold, or each token keeps the same number of its largest scores.
    prefill : float
        Of a prompt's tokens the last so many are sparse, in [0, 1]; single tokens (decode) always are.
    projections : mapping of str to Projection
        By layer name.
    siblings : tuple of tuple of str
        Layers that receive the very same input, such as query, key and value.

    Examples
    --------
    >>> plan = Plan(0.5, "threshold", 0.99, {"fc": Projection(0.5, 0.1, False)}, (("fc",),))
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    sparsity: float
    select: Select
    prefill: float
    projections: Mapping[str, Projection]
    siblings: tuple[tuple[str, ...], ...] = ()

    def to_json(self) -> str:
        """Return the plan as JSON."""
        fields = asdict(self) | {"version": VERSION}
        for row in fields["projections"].values():
            row["threshold"] = row["threshold"] if math.isfinite(row["threshold"]) else None
        return json.dumps(fields, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read :meth:`to_json`'s text.

        Raises
        ------
        CheckpointError
            If it is not a plan, or of a version this one does not know.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            version = fields.pop("version")
            if version != VERSION:
                raise CheckpointError("version of the activation-sparsity plan", found=version, expected=VERSION)
            rows = {
                name: Projection(
                    float(row["sparsity"]),
                    math.inf if row["threshold"] is None else float(row["threshold"]),
                    bool(row["norms"]),
                )
                for name, row in fields["projections"].items()
            }
            siblings = tuple(tuple(names) for names in fields["siblings"])
            plan = cls(float(fields["sparsity"]), fields["select"], float(fields["prefill"]), rows, siblings)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                "not an activation-sparsity plan", found=f"{type(error).__name__}: {error}"
            ) from error
        if plan.select not in ("threshold", "topk"):
            raise CheckpointError("select of the plan", found=repr(plan.select), expected="'threshold' or 'topk'")
        return plan

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read the plan beside a model: a JSON file, or a folder that holds ``wina.json``.

        Raises
        ------
        CheckpointError
            If there is none, or it is damaged.
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        try:
            return cls.from_json(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read the activation-sparsity plan {path}", found=str(error)) from error


def check_sparsity(sparsity: float) -> None:
    """Refuse a sparsity outside [0, 1).

    Raises
    ------
    HyperparameterError
        If it is outside.
    """
    if not 0 <= sparsity < 1:
        raise HyperparameterError("sparsity", found=sparsity, expected="0 <= sparsity < 1")
