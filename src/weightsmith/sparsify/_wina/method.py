r"""WINA and TEAL: for every token, skip the weight columns whose inputs contribute least.

Nothing is trained and no weight changes. Of a layer's inputs :math:`x` those with a small score are set to zero,

.. math:: y = W (m \odot x) + b, \qquad m_i = [\,|x_i| \, c_i > t\,]

with :math:`c_i = \lVert W_{:,i} \rVert_2` (WINA: Chen, Xue, Ding et al. 2025, arXiv 2505.19427) or :math:`c_i = 1`
(TEAL: Liu, Ponnusamy, Cai et al. 2024, arXiv 2408.14690), and a kernel does not read the columns of zeros. Decoding
one sequence is bound by reading weights, so it becomes faster.

:func:`wina` and :func:`teal` do everything in one call. In parts: :func:`calibrate_wina` finds the thresholds and
returns an :class:`ActivationPlan`, :func:`apply_plan` makes a model sparse, :func:`plan_report` counts what is skipped,
and :func:`remove_plan` restores the dense model bit by bit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Batches
from weightsmith.core.errors import (
    HyperparameterError,
    LayerNotFoundError,
    MissingDependencyError,
    UnsupportedModelError,
)
from weightsmith.core.levels import Quantization, WeightLevels
from weightsmith.core.models import (
    Layer,
    find_blocks,
    find_layers,
    get_module,
    missed,
    stream,
    swap_module,
    unreached,
    without_fast_path,
)
from weightsmith.core.progress import track
from weightsmith.core.results import Result, record
from weightsmith.core.sharding import refuse_sharded
from weightsmith.core.training import check_finite
from weightsmith.sparsify._wina.allocation import greedy
from weightsmith.sparsify._wina.group import Backend, SharedInputGroup, check_backend
from weightsmith.sparsify._wina.histogram import ScoreHistogram
from weightsmith.sparsify._wina.layers import (
    Norms,
    checked,
    find_input_groups,
    linear_layers,
    projections,
    score_norm,
    uses_norms,
)
from weightsmith.sparsify._wina.linear import Prompt, SparseLinear
from weightsmith.sparsify._wina.plan import FILE, ActivationPlan, Projection, Select, check_sparsity
from weightsmith.sparsify._wina.selection import threshold_limits

__all__ = ["apply_plan", "calibrate_wina", "plan_report", "remove_plan", "teal", "wina"]

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
        Fraction of the inputs to skip, in [0, 1). The useful range is 0.25 to 0.5.
    norms : {"reference", "all", "none"}, default: "reference"
        Where scores use the column norms: at keys and gates, as in the authors' code; everywhere, as in the paper;
        nowhere, which is TEAL.
    select : {"threshold", "topk"}, default: "threshold"
        Skip scores below a fixed threshold, or keep the same number of inputs for every token (exact, slower).
    allocation : {"uniform", "greedy"}, default: "uniform"
        The same sparsity for every layer, or within each block more where the output changes least. Greedy runs every
        block about ``50 * layers`` times: calibrate it on few tokens.
    step : float, default: 0.05
        Mean step of the greedy allocation, in (0, 1].
    prefill : float, default: 0.99
        The last fraction of a prompt's tokens, which is sparse. All later tokens attend to the first ones, which stay
        dense.
    backend : {"auto", "mask", "cpu", "triton"}, default: "auto"
        ``mask`` only sets inputs to zero (any device, no speed-up); the others skip the columns. ``auto`` selects the
        kernel for the model's device and type.
    include, exclude : str or sequence of str
        Shell patterns on layer names.

    Returns
    -------
    Result
        A row per layer, the bytes read per token in ``totals``, and the plan in ``files["wina.json"]``.

    Raises
    ------
    HyperparameterError
        If a value is outside its range.
    CalibrationError
        If there are no calibration tokens.
    UnsupportedModelError
        If the layers are quantized, wrapped or sparse already, or the backend does not support their device or type.
    LayerNotFoundError
        If no linear layer matches.
    NonFiniteError
        If a weight holds NaN or infinity.

    References
    ----------
    arXiv 2505.19427. The default allocation differs: the paper's greedy one takes hours without a GPU.

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
        Fraction of the inputs to skip, in [0, 1).
    select, allocation, step, backend, include, exclude
        As in :func:`wina`.
    prefill : float, default: 0.5
        The last fraction of a prompt's tokens, which is sparse.

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


def calibrate_wina(
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
) -> ActivationPlan:
    """Find the threshold of every layer from the distribution of its scores in the dense model.

    Parameters
    ----------
    model : nn.Module
        Any dense model; it does not change.
    calibration : sequence of Batch
        Padding marked by an ``attention_mask`` is left out.
    sparsity, norms, select, allocation, step, prefill, include, exclude
        As in :func:`wina`.

    Returns
    -------
    ActivationPlan
        For :func:`apply_plan`.

    Raises
    ------
    HyperparameterError, CalibrationError, UnsupportedModelError, LayerNotFoundError
        As in :func:`wina`.

    Examples
    --------
    >>> import torch
    >>> x = torch.linspace(0, 1, 8000).view(-1, 8)
    >>> plan = calibrate_wina(nn.Sequential(nn.Linear(8, 8)), [x], norms="none", sparsity=0.25)
    >>> round(plan.projections["0"].threshold, 2)
    0.25
    """
    _check(sparsity, step, prefill)
    check_choice("norms", norms, Norms)
    check_choice("select", select, Select)
    check_choice("allocation", allocation, Allocation)
    wanted = {layer.name for layer in projections(model, include, exclude)}
    refuse_sharded(model)
    check_finite(model)
    chosen: dict[str, Projection] = {}
    input_groups: list[tuple[str, ...]] = []
    with closing(stream(model, calibration, include, exclude)) as blocks:
        for block in track(blocks, "calibrate", total=len(find_blocks(model))):
            layers = [layer for layer in block.layers if layer.name in wanted]
            if not layers or not block.inputs:
                continue
            norm = {layer.name: score_norm(layer, norms) for layer in layers}
            histograms = block.observe(layers, partial(_histogram, norm), shared=False)
            layers = [layer for layer in layers if layer.name in histograms]
            if not layers:
                continue

            def threshold(name: str, share: float, of: Mapping[str, ScoreHistogram] = histograms) -> float:
                return of[name].threshold(share)

            if allocation == "greedy":
                limits = partial(_limits, threshold, norm)
                shares = greedy(block, layers, limits, sparsity=sparsity, step=step, prefill=prefill)
            else:
                shares = {layer.name: sparsity for layer in layers}
            for name, share in shares.items():
                chosen[name] = Projection(share, threshold(name, share), uses_norms(name, norms))
            input_groups += find_input_groups(block, layers)
    return ActivationPlan(sparsity, select, prefill, chosen, tuple(input_groups))


def apply_plan(
    model: nn.Module,
    plan: ActivationPlan,
    *,
    quantization: Quantization | None = None,
    backend: Backend | Literal["auto"] = "auto",
) -> None:
    """Make a model sparse, in place; its state dict keeps its keys, shapes and values.

    Parameters
    ----------
    model : nn.Module
        The model of the plan, or another one with the same layers.
    plan : ActivationPlan
        From :func:`calibrate_wina`, or :meth:`ActivationPlan.load`.
    quantization : Quantization, optional
        Of a model whose weights are on levels: ``Quantization.load(folder)`` of what ``gptq``, ``round_to_nearest`` or
        ``ofq`` wrote. Single tokens then read one byte per weight, or half a byte up to four bits, of the columns that
        are kept. The weights stay in memory besides, for prompts.
    backend : {"auto", "mask", "cpu", "triton"}, default: "auto"
        As in :func:`wina`.

    Raises
    ------
    UnsupportedModelError
        If a layer is not linear, wrapped or sparse already, or the backend cannot work on it; codes need the CPU.
    LayerNotFoundError
        If a layer of the plan is not in the model, or none is quantized.
    CheckpointError
        If a weight is off the levels of ``quantization``.
    MissingDependencyError
        If the backend's package is not installed.

    Warns
    -----
    UserWarning
        If only some of the plan's layers are quantized: the others are read as they are.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 8))
    >>> apply_plan(model, calibrate_wina(model, [torch.randn(9, 8)]), backend="mask")
    >>> remove_plan(model)
    >>> model
    Sequential(
      (0): Linear(in_features=8, out_features=8, bias=True)
    )
    """
    check_choice("backend", backend, Literal["auto", Backend])
    if any(isinstance(module, SparseLinear) for module in model.modules()):
        raise UnsupportedModelError("the model is sparse already", do="Call remove_plan(model) first.")
    layers = {name: checked(Layer(name, get_module(model, name))) for name in plan.projections}
    weights = [layer.weight_OI for layer in layers.values()]
    chosen = _choose(weights) if backend == "auto" else backend
    check_backend(chosen, weights)
    levels = {} if quantization is None else _levels(layers, quantization, chosen)

    without_fast_path(model)
    prompt = Prompt(plan.prefill)
    sparse: dict[str, SparseLinear] = {}
    try:
        for name, layer in layers.items():
            sparse[name] = SparseLinear(layer.module, plan.projections[name], plan, prompt, levels.get(name), name)
            swap_module(model, name, sparse[name])
        hook = model.register_forward_pre_hook(prompt.see, with_kwargs=True)
        model._weightsmith_prompt = hook  # type: ignore[assignment]
        if chosen != "mask":
            grouped = {name for group in plan.groups for name in group}
            for group in [*plan.groups, *((name,) for name in sparse if name not in grouped)]:
                for members in _packable([sparse[name] for name in group if name in sparse]):
                    SharedInputGroup(members, chosen)
    except BaseException:
        _restore(model, sparse)
        raise


def remove_plan(model: nn.Module) -> None:
    """Restore the dense model of before :func:`apply_plan`, bit by bit.

    Parameters
    ----------
    model : nn.Module
        A sparse model.

    Raises
    ------
    LayerNotFoundError
        If it is not sparse.
    """
    _restore(model, _sparse_layers(model))


def plan_report(model: nn.Module) -> dict[str, Any]:
    """Report what a sparse model skips: as planned, and on the tokens since it became sparse.

    Parameters
    ----------
    model : nn.Module
        A sparse model.

    Returns
    -------
    dict
        ``sparsity`` (planned fraction of the sparse layers' weights), ``realized`` (fraction skipped so far, NaN before
        the first token), ``bytes_dense`` and ``bytes_sparse`` (weights read per token, the head included), ``ceiling``
        (the largest possible speed-up of decoding), and ``layers`` with a row for each.

    Raises
    ------
    LayerNotFoundError
        If it is not sparse.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    >>> _ = wina(model, [torch.randn(99, 8)], backend="mask", exclude="1")
    >>> round(plan_report(model)["ceiling"], 2)
    1.33
    """
    rows: list[dict[str, Any]] = []
    for name, layer in _sparse_layers(model).items():
        kept, seen = float(layer.kept), layer.seen
        if layer.kernel is not None:
            kept, seen = kept + int(layer.kernel.total[layer.position]), seen + layer.kernel.seen
        rows.append(
            {
                "layer": name,
                "sparsity": layer.projection.sparsity,
                "realized": 1 - kept / (seen * layer.in_features) if seen else math.nan,
                "threshold": layer.projection.threshold,
                "norms": layer.projection.norms,
                "columns": layer.in_features,
                "bytes": layer.weight.numel() * layer.stored_bits // 8,
            }
        )
    total = sum(row["bytes"] for row in rows)
    rest = sum(layer.weight_OI.nbytes for layer in find_layers(model, strict=False))
    planned = sum(row["bytes"] * row["sparsity"] for row in rows)
    return {
        "sparsity": planned / total,
        "realized": sum(row["bytes"] * row["realized"] for row in rows) / total,
        "bytes_dense": total + rest,
        "bytes_sparse": round(total - planned + rest),
        "ceiling": (total + rest) / (total - planned + rest),
        "layers": rows,
    }


def _transform(
    method: str, model: nn.Module, calibration: Batches, backend: Backend | Literal["auto"], **hyper: Any
) -> Result:
    check_choice("backend", backend, Literal["auto", Backend])
    with record(method, backend=backend, **hyper) as result:
        plan = calibrate_wina(model, calibration, **hyper)
        result.notes += unreached(model, linear_layers(model))
        matching = linear_layers(model, hyper["include"], hyper["exclude"])
        result.notes += missed(matching, plan.projections, "they stay dense")
        apply_plan(model, plan, backend=backend)
        try:
            facts = plan_report(model)
        except BaseException:
            remove_plan(model)
            raise
        for row in facts.pop("layers"):
            del row["realized"]
            result.layer(row.pop("layer"), **row)
        del facts["realized"]
        result.totals = facts
        result.files = {FILE: plan.to_json()}
        if hyper["norms"] == "reference" and not any(p.norms for p in plan.projections.values()):
            result.notes.append("No layer is named like a key or a gate: scores use no column norms, as in TEAL.")
        result.notes.append(
            "The weights are as they were: a saved model loads dense. "
            f"apply_plan(model, ActivationPlan.load(folder)) reads {FILE} beside it."
        )
    return result


def _restore(model: nn.Module, sparse: Mapping[str, SparseLinear]) -> None:
    """Put the dense layers back, with their parameters' own storage where kernels have packed it."""
    for kernel in {id(m.kernel): m.kernel for m in sparse.values() if m.kernel is not None}.values():
        kernel.release()
    for name, module in sparse.items():
        original = module.original
        original.weight, original.bias = module.weight, module.bias
        swap_module(model, name, original.train(module.training))
    handle = model.__dict__.pop("_weightsmith_prompt", None)
    if handle is not None:
        handle.remove()


def _histogram(norm: Mapping[str, Tensor], layer: Layer) -> ScoreHistogram:
    return ScoreHistogram(norm[layer.name])


def _limits(
    threshold: Callable[[str, float], float], norm: Mapping[str, Tensor], name: str, share: float
) -> Float[Tensor, " in"]:
    return threshold_limits(threshold(name, share), norm[name])


def _check(sparsity: float, step: float, prefill: float) -> None:
    check_sparsity(sparsity)
    if not 0 < step <= 1:
        raise HyperparameterError("step", found=step, expected="0 < step <= 1")
    if not 0 <= prefill <= 1:
        raise HyperparameterError("prefill", found=prefill, expected="0 <= prefill <= 1")


def _choose(weights: Sequence[Tensor]) -> Backend:
    """Select the kernel that supports the weights, or masks where none does."""
    kernels: tuple[Backend, ...] = ("cpu", "triton")
    for backend in kernels:
        try:
            check_backend(backend, weights)
        except (UnsupportedModelError, MissingDependencyError):
            continue
        return backend
    return "mask"


def _levels(layers: Mapping[str, Layer], quantization: Quantization, backend: Backend) -> dict[str, WeightLevels]:
    """Find the levels of each layer that has some."""
    if backend != "cpu":
        raise UnsupportedModelError("quantized columns", found=f"backend {backend!r}", expected="backend 'cpu'")
    found = {name: quantization.weights[name] for name in layers if name in quantization.weights}
    if not found:
        raise LayerNotFoundError(
            "no layer of the plan is quantized", found=[*quantization.weights][:4], expected=[*layers][:4]
        )
    if plain := [name for name in layers if name not in found]:
        warnings.warn(f"{len(plain)} of {len(layers)} layers are not quantized: {plain[:4]}", stacklevel=3)
    return found


def _packable(members: Sequence[SparseLinear]) -> list[list[SparseLinear]]:
    """Split a group into layers whose weights can be in one buffer."""
    groups: dict[Any, list[SparseLinear]] = {}
    for member in members:
        kind = member.weight.dtype, member.weight.device, member.in_features, member.stored_bits
        groups.setdefault(kind, []).append(member)
    return list(groups.values())


def _sparse_layers(model: nn.Module) -> Mapping[str, SparseLinear]:
    sparse = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    if not sparse:
        raise LayerNotFoundError("the model has no sparse layers", do="Call apply_plan(model, plan) first.")
    return sparse
