r"""WINA and TEAL: for every token, skip the weight columns whose input matters least.

Nothing is trained and no weight changes. Of a layer's inputs :math:`x` those with a small score are set to zero,

.. math:: y = W (m \odot x) + b, \qquad m_i = [\,|x_i| \, c_i > t\,]

with :math:`c_i = \lVert W_{:,i} \rVert_2` (WINA: Chen, Xue, Ding et al. 2025, arXiv 2505.19427) or :math:`c_i = 1`
(TEAL: Liu, Ponnusamy, Cai et al. 2024, arXiv 2408.14690), and a kernel does not read the columns of zeros: decoding
one sequence, which is bound by reading weights, becomes faster.

:func:`wina` and :func:`teal` do everything in one call. In parts: :func:`calibrate` finds the thresholds and returns a
:class:`Plan`, :func:`apply` makes a model sparse with it, :func:`report` says what is saved, :func:`remove` gives the
dense model back, bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from weightsmith.core.data import Batches, as_batches
from weightsmith.core.errors import (
    HyperparameterError,
    LayerNotFoundError,
    MissingDependencyError,
    UnsupportedModelError,
)
from weightsmith.core.models import Layer, find_blocks, find_layers, get_module, stream, swap_module
from weightsmith.core.progress import track
from weightsmith.core.results import Result, record
from weightsmith.sparsify._wina.allocation import greedy
from weightsmith.sparsify._wina.decode import HeadLinear, lengthen, shorten
from weightsmith.sparsify._wina.histogram import ScoreHistograms
from weightsmith.sparsify._wina.layers import (
    REFERENCE,
    Norms,
    checked,
    find_siblings,
    heads,
    projections,
    score_norm,
    uses_norms,
)
from weightsmith.sparsify._wina.linear import Prompt, SparseLinear
from weightsmith.sparsify._wina.plan import FILE, Plan, Projection, Select, check_sparsity
from weightsmith.sparsify._wina.rotate import find_rotation, install
from weightsmith.sparsify._wina.selection import threshold_limits
from weightsmith.sparsify._wina.siblings import Backend, Siblings, check_backend

__all__ = ["Plan", "Projection", "apply", "calibrate", "remove", "report", "rotate", "teal", "wina"]

Allocation = Literal["uniform", "greedy"]


def wina(
    model: nn.Module,
    calibration: Batches,
    *,
    sparsity: float = 0.5,
    norms: Norms = "reference",
    select: Select = "threshold",
    allocation: Allocation = "uniform",
    step: float = 0.05,
    prefill: float = 0.99,
    backend: Backend | Literal["auto"] = "auto",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Result:
    r"""Skip, for every token, the columns with the smallest input times column norm.

    Parameters
    ----------
    model : nn.Module
        Any model; the linear layers of its repeated blocks become sparse, in place.
    calibration : sequence of Batch
        Some 20 short texts.
    sparsity : float, default: 0.5
        Share of the inputs to skip, in [0, 1). The useful range is 0.25 to 0.5.
    norms : {"reference", "all", "none"}, default: "reference"
        Where scores take in the column norms: at keys and gates, as the authors' code has it; everywhere, as the
        paper has it; nowhere, which is TEAL.
    select : {"threshold", "topk"}, default: "threshold"
        Skip scores below a fixed threshold, or keep the same number of inputs for every token (exact, slower).
    allocation : {"uniform", "greedy"}, default: "uniform"
        The same sparsity for every layer, or within each block more where its output suffers least. Greedy runs every
        block some ``50 * layers`` times: calibrate it on few tokens.
    step : float, default: 0.05
        Mean step of the greedy allocation, in (0, 1].
    prefill : float, default: 0.99
        Of a prompt's tokens the last so many are sparse; its first ones, which all others attend to, are not.
    backend : {"auto", "mask", "cpu", "triton"}, default: "auto"
        ``mask`` only sets inputs to zero (any device, no speed-up); the others skip the columns. ``auto`` takes
        the kernel that fits the model.
    include, exclude : str or sequence of str
        Shell patterns on layer names.

    Returns
    -------
    Result
        A row a layer, the bytes a token reads in ``totals``, and the plan in ``files["wina.json"]``.

    Raises
    ------
    HyperparameterError
        If a value is outside its range.
    CalibrationError
        If there are no calibration tokens.
    UnsupportedModelError
        If the layers are quantised or wrapped, sparse already, or not where the backend works.
    LayerNotFoundError
        If no linear layer matches.

    References
    ----------
    arXiv 2505.19427. The default allocation differs: the paper's greedy one costs hours without a GPU.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> result = wina(model, [torch.randn(64, 8)], norms="all", backend="mask")
    >>> model[0]
    SparseLinear(8, 8, sparsity=0.500, threshold)
    """
    return _transform("wina", **locals())


def teal(
    model: nn.Module,
    calibration: Batches,
    *,
    sparsity: float = 0.5,
    select: Select = "threshold",
    allocation: Allocation = "uniform",
    step: float = 0.05,
    prefill: float = 0.5,
    backend: Backend | Literal["auto"] = "auto",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Result:
    """Skip, for every token, the columns with the smallest input: :func:`wina` without column norms.

    Parameters
    ----------
    model : nn.Module
        Any model; the linear layers of its repeated blocks become sparse, in place.
    calibration : sequence of Batch
        Some 20 short texts.
    sparsity : float, default: 0.5
        Share of the inputs to skip, in [0, 1).
    select, allocation, step, backend, include, exclude
        As in :func:`wina`.
    prefill : float, default: 0.5
        Of a prompt's tokens the last so many are sparse.

    Returns
    -------
    Result
        As :func:`wina`'s.

    References
    ----------
    arXiv 2408.14690.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> teal(model, [torch.randn(64, 8)], sparsity=0.25, backend="mask").hyper["sparsity"]
    0.25
    """
    return _transform("teal", norms="none", **locals())


def calibrate(
    model: nn.Module,
    calibration: Batches,
    *,
    sparsity: float = 0.5,
    norms: Norms = "reference",
    select: Select = "threshold",
    allocation: Allocation = "uniform",
    step: float = 0.05,
    prefill: float = 0.99,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Plan:
    """Find the thresholds of every layer, from the distribution of its scores in the dense model.

    Parameters
    ----------
    model : nn.Module
        Any dense model; it does not change.
    calibration : sequence of Batch
        Padding is left out, where an ``attention_mask`` says what is.
    sparsity, norms, select, allocation, step, prefill, include, exclude
        As in :func:`wina`.

    Returns
    -------
    Plan
        For :func:`apply`.

    Raises
    ------
    HyperparameterError, CalibrationError, UnsupportedModelError, LayerNotFoundError
        As in :func:`wina`.

    Examples
    --------
    >>> import torch
    >>> x = torch.linspace(0, 1, 8000).view(-1, 8)
    >>> plan = calibrate(nn.Sequential(nn.Linear(8, 8)), [x], norms="none", sparsity=0.25)
    >>> round(plan.projections["0"].threshold, 2)
    0.25
    """
    _check(sparsity, step, prefill)
    wanted = {layer.name for layer in projections(model, include, exclude)}
    chosen: dict[str, Projection] = {}
    siblings: list[tuple[str, ...]] = []
    blocks = stream(model, calibration, include, exclude)
    for block in track(blocks, "calibrate", total=len(find_blocks(model))):
        layers = [layer for layer in block.layers if layer.name in wanted]
        if not layers or not block.inputs:
            continue
        groups = find_siblings(block, layers)
        norm = {layer.name: score_norm(layer, norms) for layer in layers}
        followers = {group[0]: group for group in groups}

        def make(leader: Layer, followers: Any = followers, norm: Any = norm) -> ScoreHistograms:
            return ScoreHistograms([norm[name] for name in followers[leader.name]])

        histograms = block.observe(layers, make)
        places = {name: (histograms[name], place) for group in groups for place, name in enumerate(group)}

        def threshold(name: str, share: float, places: Any = places) -> float:
            histogram, place = places[name]
            return float(histogram.threshold(place, share))

        def limits(name: str, share: float, norm: Any = norm, threshold: Any = threshold) -> Tensor:
            return threshold_limits(threshold(name, share), norm[name])

        seen = [layer for layer in layers if layer.name in places]
        shares = {layer.name: sparsity for layer in seen}
        if allocation == "greedy":
            shares = greedy(block, seen, limits, sparsity=sparsity, step=step, prefill=prefill)
        for name, share in shares.items():
            chosen[name] = Projection(share, threshold(name, share), uses_norms(name, norms))
        siblings += groups
    return Plan(sparsity, select, prefill, chosen, tuple(siblings))


def rotate(
    model: nn.Module,
    calibration: Batches,
    *,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Result:
    """Make the columns of keys and gates orthogonal, before :func:`wina`: the model computes the same.

    See :mod:`weightsmith.sparsify._wina.rotate` for how. Every token then reads two more matrices of width x
    width a block, which takes part of the speed-up back; and on a small model with grouped-query attention the
    sparse model became worse. Measure both before taking it.

    Parameters
    ----------
    model : nn.Module
        Any dense model, changed in place; in float32 or wider the change is exact to rounding.
    calibration : sequence of Batch
        One batch is enough: to see which layers read which norm, and to check the result.
    include, exclude : str or sequence of str
        Shell patterns on layer names.

    Returns
    -------
    Result
        A row a rotation: its layers, and the share of columns that became zero.

    Raises
    ------
    UnsupportedModelError
        If a norm's output is read by something else. The model is then as it was.
    LayerNotFoundError
        If no layer is named like a key or a gate.

    References
    ----------
    arXiv 2505.19427, tensor transformation.
    """
    wanted = {layer.name for layer in projections(model, include, exclude)}
    rotations = []
    with record("rotate", include=include, exclude=exclude) as result:
        for block in stream(model, as_batches(calibration)[:1], include, exclude):
            layers = {layer.name: layer for layer in block.layers if layer.name in wanted}
            for group in find_siblings(block, list(layers.values())) if layers and block.inputs else ():
                references = [layers[name] for name in group if uses_norms(name, "reference")]
                if references:
                    rotation = find_rotation(block, [layers[name] for name in group], references)
                    rotations.append(rotation)
                    width, outs = len(rotation.matrix_II), sum(r.weight_OI.shape[0] for r in references)
                    result.layer(", ".join(group), columns=width, zero_columns=max(0, width - outs))
        if not rotations:
            raise LayerNotFoundError("no layer is named like a key or a gate", expected=list(REFERENCE))
        install(model, rotations, calibration)
    return result


def apply(model: nn.Module, plan: Plan, *, backend: Backend | Literal["auto"] = "auto") -> None:
    """Make a model sparse, in place; its state dict keeps its keys, shapes and values.

    Parameters
    ----------
    model : nn.Module
        The model the plan was made for, or one like it.
    plan : Plan
        From :func:`calibrate`, or :meth:`Plan.load`.
    backend : {"auto", "mask", "cpu", "triton"}, default: "auto"
        As in :func:`wina`.

    Raises
    ------
    UnsupportedModelError
        If a layer is not linear, wrapped or sparse already, or the backend cannot work on it.
    LayerNotFoundError
        If a layer of the plan is not in the model.
    MissingDependencyError
        If the backend's package is not installed.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 8))
    >>> apply(model, calibrate(model, [torch.randn(9, 8)]), backend="mask")
    >>> remove(model)
    >>> model
    Sequential(
      (0): Linear(in_features=8, out_features=8, bias=True)
    )
    """
    if any(isinstance(module, SparseLinear) for module in model.modules()):
        raise UnsupportedModelError("the model is sparse already", do="Call wina.remove(model) first.")
    layers = {name: checked(Layer(name, get_module(model, name))) for name in plan.projections}
    weights = [layer.weight_OI for layer in layers.values()]
    chosen = _choose(weights) if backend == "auto" else backend
    check_backend(chosen, weights)

    blocks, outside = find_blocks(model).values(), heads(model)
    prompt = Prompt(plan.prefill)
    sparse = {name: SparseLinear(layer.module, plan.projections[name], plan, prompt) for name, layer in layers.items()}
    for name, module in sparse.items():
        swap_module(model, name, module)
    model._weightsmith_prompt = model.register_forward_pre_hook(prompt.see, with_kwargs=True)  # type: ignore[assignment]
    if chosen != "mask":
        grouped = {name for group in plan.siblings for name in group}
        for group in [*plan.siblings, *((name,) for name in sparse if name not in grouped)]:
            for alike in _alike([sparse[name] for name in group if name in sparse]):
                Siblings(alike, chosen)
    if chosen == "cpu":
        for name, head in outside.items():
            swap_module(model, name, HeadLinear(head))
        for block in blocks:
            shorten(block)


def remove(model: nn.Module) -> None:
    """Give the dense model back: the layers and weights that were there before :func:`apply`, bit by bit.

    Parameters
    ----------
    model : nn.Module
        A sparse model.

    Raises
    ------
    LayerNotFoundError
        If it is not sparse.
    """
    sparse = _sparse_layers(model)
    for group in {id(m.siblings): m.siblings for m in sparse.values() if m.siblings is not None}.values():
        group.release()
    for name, module in sparse.items():
        original = module.original
        original.weight, original.bias = module.weight, module.bias
        swap_module(model, name, original.train(module.training))
    for name, module in [*model.named_modules()]:
        lengthen(module)
        if isinstance(module, HeadLinear):
            swap_module(model, name, module.original.train(module.training))
    handle = model.__dict__.pop("_weightsmith_prompt", None)
    if handle is not None:
        handle.remove()


def report(model: nn.Module) -> dict[str, Any]:
    """Say what a sparse model skips: as planned, and on the tokens it has seen since it became sparse.

    Parameters
    ----------
    model : nn.Module
        A sparse model.

    Returns
    -------
    dict
        ``sparsity`` (planned share of the sparse layers' weights), ``realised`` (share skipped so far, NaN before the
        first token), ``bytes_dense`` and ``bytes_sparse`` (weights a token reads, the head included), ``ceiling`` (how
        many times faster decoding can get at most), and ``layers`` with a row for each.

    Raises
    ------
    LayerNotFoundError
        If it is not sparse.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    >>> _ = wina(model, [torch.randn(99, 8)], backend="mask", exclude="1")
    >>> round(report(model)["ceiling"], 2)
    1.33
    """
    rows: list[dict[str, Any]] = []
    for name, layer in _sparse_layers(model).items():
        kept, seen = float(layer.kept), layer.seen
        if layer.siblings is not None:
            kept, seen = kept + int(layer.siblings.total[layer.position]), seen + layer.siblings.seen
        rows.append(
            {
                "layer": name,
                "sparsity": layer.projection.sparsity,
                "realised": 1 - kept / (seen * layer.in_features) if seen else math.nan,
                "threshold": layer.projection.threshold,
                "norms": layer.projection.norms,
                "columns": layer.in_features,
                "bytes": layer.weight.numel() * layer.weight.element_size(),
            }
        )
    total = sum(row["bytes"] for row in rows)
    rest = sum(layer.weight_OI.nbytes for layer in find_layers(model, strict=False))
    rest += sum(m.weight.nbytes for m in model.modules() if isinstance(m, HeadLinear))
    rest += sum(tensor.nbytes for name, tensor in model.named_buffers() if name.endswith("rotation"))
    planned = sum(row["bytes"] * row["sparsity"] for row in rows)
    return {
        "sparsity": planned / total,
        "realised": sum(row["bytes"] * row["realised"] for row in rows) / total,
        "bytes_dense": total + rest,
        "bytes_sparse": round(total - planned + rest),
        "ceiling": (total + rest) / (total - planned + rest),
        "layers": rows,
    }


def _transform(
    method: str, model: nn.Module, calibration: Batches, backend: Backend | Literal["auto"], **hyper: Any
) -> Result:
    with record(method, backend=backend, **hyper) as result:
        plan = calibrate(model, calibration, **hyper)
        apply(model, plan, backend=backend)
        facts = report(model)
        for row in facts.pop("layers"):
            del row["realised"]
            result.layer(row.pop("layer"), **row)
        del facts["realised"]
        result.totals = facts
        result.files = {FILE: plan.to_json()}
        if hyper["norms"] == "reference" and not any(p.norms for p in plan.projections.values()):
            result.notes.append("No layer is named like a key or a gate: scores take no column norms, as in TEAL.")
    return result


def _check(sparsity: float, step: float, prefill: float) -> None:
    check_sparsity(sparsity)
    if not 0 < step <= 1:
        raise HyperparameterError("step", found=step, expected="0 < step <= 1")
    if not 0 <= prefill <= 1:
        raise HyperparameterError("prefill", found=prefill, expected="0 <= prefill <= 1")


def _choose(weights: Sequence[Tensor]) -> Backend:
    """The kernel that fits the weights, or masks where none does."""
    kernels: tuple[Backend, ...] = ("cpu", "triton")
    for backend in kernels:
        try:
            check_backend(backend, weights)
        except (UnsupportedModelError, MissingDependencyError):
            continue
        return backend
    return "mask"


def _alike(members: Sequence[SparseLinear]) -> list[list[SparseLinear]]:
    """Siblings that can lie in one buffer."""
    groups: dict[Any, list[SparseLinear]] = {}
    for member in members:
        groups.setdefault((member.weight.dtype, member.weight.device, member.in_features), []).append(member)
    return list(groups.values())


def _sparse_layers(model: nn.Module) -> Mapping[str, SparseLinear]:
    sparse = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    if not sparse:
        raise LayerNotFoundError("the model has no sparse layers", do="Call wina.apply(model, plan) first.")
    return sparse
