"""How each layer of a model selects its inputs, as a small JSON file beside the model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from weightsmith.core.errors import CheckpointError, HyperparameterError
from weightsmith.core.io import parse_json

__all__ = ["FILE", "ActivationPlan", "Projection", "Select", "check_sparsity"]

FILE = "wina.json"
VERSION = 2

Select = Literal["threshold", "topk"]


@dataclass(frozen=True)
class Projection:
    """How one layer selects its inputs.

    Attributes
    ----------
    sparsity : float
        Fraction of the inputs to drop, in [0, 1].
    threshold : float
        An input is dropped when its score is at most this; infinite drops all.
    norms : bool
        Whether the score is the input's magnitude times its column's norm, or the magnitude alone.
    """

    sparsity: float
    threshold: float
    norms: bool


@dataclass(frozen=True)
class ActivationPlan:
    """The selection of every layer.

    Attributes
    ----------
    sparsity : float
        The requested sparsity.
    select : {"threshold", "topk"}
        Drop inputs with scores up to a fixed threshold, or keep the same number of largest scores for every token.
    prefill : float
        The last fraction of a prompt's tokens, in [0, 1], which is sparse; single tokens (decoding) always are.
    projections : mapping of str to Projection
        By layer name.
    groups : tuple of tuple of str
        Layers that receive the same tensor, such as query, key and value.

    Examples
    --------
    >>> plan = ActivationPlan(0.5, "threshold", 0.99, {"fc": Projection(0.5, 0.1, False)}, (("fc",),))
    >>> ActivationPlan.from_json(plan.to_json()) == plan
    True
    """

    sparsity: float
    select: Select
    prefill: float
    projections: Mapping[str, Projection]
    groups: tuple[tuple[str, ...], ...] = ()

    def to_json(self) -> str:
        """Return the plan as JSON."""
        fields = asdict(self) | {"version": VERSION}
        for row in fields["projections"].values():
            row["threshold"] = row["threshold"] if math.isfinite(row["threshold"]) else None
        return json.dumps(fields, indent=1)

    @classmethod
    def from_json(cls, text: str) -> ActivationPlan:
        """Read :meth:`to_json`'s text.

        Raises
        ------
        CheckpointError
            If it is not a plan, or of a version this one does not know.
        """
        fields = parse_json(text, "activation-sparsity plan")
        try:
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
            groups = tuple(tuple(names) for names in fields["groups"])
            plan = cls(float(fields["sparsity"]), fields["select"], float(fields["prefill"]), rows, groups)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                "not an activation-sparsity plan", found=f"{type(error).__name__}: {error}"
            ) from error
        if plan.select not in ("threshold", "topk"):
            raise CheckpointError("select of the plan", found=repr(plan.select), expected="'threshold' or 'topk'")
        return plan

    @classmethod
    def load(cls, path: str | Path) -> ActivationPlan:
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
            raise CheckpointError(f"cannot read the activation-sparsity plan {path}", found=error) from error


def check_sparsity(sparsity: float) -> None:
    """Refuse a sparsity outside [0, 1).

    Raises
    ------
    HyperparameterError
        If it is outside.
    """
    if not 0 <= sparsity < 1:
        raise HyperparameterError("sparsity", found=sparsity, expected="0 <= sparsity < 1")
