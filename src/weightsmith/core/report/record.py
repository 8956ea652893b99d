"""What is known of a run: the plain data that a report shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Record"]


@dataclass
class Record:
    """What one method did to one model, as data.

    Attributes
    ----------
    method : str
        The method's name, as in the catalog.
    hyper : dict
        The hyper-parameters it ran with.
    layers : list of dict
        One row per layer; each row has the key ``"layer"`` and the method's own per-layer measures.
    totals : dict
        The same measures over the whole model.
    inputs : list of dict
        One row per network that a merge read: its name ``"network"``, and relative to its norm the distances
        ``"to_result"`` and ``"to_others"`` (to each of the networks, in order) of the weights that were merged. They
        are estimated from a sample of large tensors.
    before, after : dict
        Measures of the model (see :mod:`weightsmith.core.metrics`) before and after.
    curves : dict of str to list
        What changed during the run, such as ``"training loss"``: one value per step, or pairs of a step and a value.
        Curves named ``"title: line"`` are drawn in one picture per title.
    samples : dict
        The model's own text: ``{"prompt": str, "before": str, "after": str}`` (language models only).
    notes : list of str
        What the user should know: warnings, fallbacks, layers left out and why.
    seconds : float
        Wall time.
    peak_memory : int
        High-water mark of the process in bytes (of the CUDA device where one was used).
    seed : int or None
        The seed of everything random.
    environment : dict
        Machine and versions.
    title : str
        Shown in place of the method's name, to tell several runs of one method apart.
    files : dict of str to str
        Small files to be saved beside the model: name to text.
    reading : bool
        Whether the model was only measured.
    maps : list of str
        Measures of the layers that are drawn as a heat map, kinds of layers by depth, instead of lines.
    pictures : dict of str to str
        Pictures of the method's own: title to SVG, with all text in it escaped.
    """

    method: str
    hyper: dict[str, Any] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    totals: dict[str, Any] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[Any]] = field(default_factory=dict)
    samples: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory: int = 0
    seed: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    title: str = ""
    files: dict[str, str] = field(default_factory=dict)
    reading: bool = False
    maps: list[str] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
