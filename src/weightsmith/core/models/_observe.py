"""Feed the inputs of layers to running statistics while a model, or a block of it, runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightsmith.core.data import Batch, Batches, as_batches, call, to_device
from weightsmith.core.errors import CalibrationError, UnsupportedModelError, WeightsmithError
from weightsmith.core.models._experts import watching_experts
from weightsmith.core.models._layers import Layer, evaluation_mode, find_blocks
from weightsmith.core.models._products import products_in_float32
from weightsmith.core.models._token_masks import StreamMasks, TokenMasks, token_masks
from weightsmith.core.processes import gather_objects

__all__ = ["A", "Accumulator", "call_checked", "device_of", "observe", "observe_runs", "quiet"]


@runtime_checkable
class Accumulator(Protocol):
    """What :func:`observe` feeds: a running statistic of one layer's inputs."""

    def update(self, x_SNI: Float[Tensor, "sequences rows in"], mask_SN: Bool[Tensor, "sequences rows"] | None) -> None:
        """Take in one batch; ``mask`` is False on padding, None where every row is real."""

    def all_reduce(self) -> None:
        """Add up over the processes of ``torch.distributed``; one may have taken in nothing."""


A = TypeVar("A", bound=Accumulator)


@torch.no_grad()
def observe(model: nn.Module, batches: Batches, layers: Sequence[Layer], make: Callable[[Layer], A]) -> dict[str, A]:
    """Run the whole model once on every batch and accumulate the inputs of some layers.

    Parameters
    ----------
    model : nn.Module
        Any model.
    batches : sequence of Batch
        Calibration data.
    layers : sequence of Layer
        The layers to watch.
    make : callable
        Makes the accumulator of a layer; layers that receive the very same tensor share one.

    Returns
    -------
    dict of str to Accumulator
        By layer name; layers no batch reached are absent.

    Raises
    ------
    CalibrationError
        If there are no batches, or the model rejects one.
    """
    batches = as_batches(batches)
    device = device_of(model)

    with quiet(model), StreamMasks(model, find_blocks(model)) as masks:

        def run(batch: Batch, index: int) -> Callable[[], Any]:
            def forward() -> None:
                placed = to_device(batch, device)
                masks.start(token_masks(placed))
                call_checked(model, placed, index)

            return forward

        runs = [(run(batch, i), lambda: masks.now) for i, batch in enumerate(batches)]
        with products_in_float32(model.parameters()):
            return observe_runs(layers, make, runs)


def observe_runs(
    layers: Sequence[Layer],
    make: Callable[[Layer], A],
    runs: Sequence[tuple[Callable[[], Any], Callable[[], TokenMasks]]],
) -> dict[str, A]:
    """Accumulate the inputs of layers over several runs, each with what says which tokens are real.

    Raises
    ------
    UnsupportedModelError
        If two layers receive the same tensor in some runs and different ones in others.
    """
    accumulators: dict[str, A] = {}
    leaders: dict[str, str] = {}
    last: tuple[Tensor | None, str] = (None, "")
    masks: Callable[[], TokenMasks] = TokenMasks

    def feed(layer: Layer, x: Tensor, mask: Tensor | None) -> None:
        if layer.name not in accumulators:
            accumulators[layer.name] = make(layer)
            leaders[layer.name] = layer.name
        accumulators[layer.name].update(*_rows(layer, x, mask))

    def hook(layer: Layer) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal last
            x = args[0] if args else next(iter(kwargs.values()))
            leader = last[1] if x is last[0] else layer.name
            if leaders.setdefault(layer.name, leader) != leader:
                raise _shared_in_some(layer.name, leader)
            if leader != layer.name:
                return
            last = (x, layer.name)
            feed(layer, x, masks().of(x))

        return see

    def see_expert(layer: Layer, x: Tensor, token: Tensor) -> None:
        own = masks().own
        feed(layer, x[None], None if own is None else own.flatten()[token][None])

    modules = [layer for layer in layers if layer.expert is None]
    hooks = [layer.module.register_forward_pre_hook(hook(layer), with_kwargs=True) for layer in modules]
    try:
        with watching_experts(layers, see_expert):
            for run, masks in runs:  # noqa: B007 - the hooks read masks
                run()
                last = (None, "")
    finally:
        for handle in hooks:
            handle.remove()
    return _of_all_processes(layers, make, accumulators, leaders)


def _of_all_processes(
    layers: Sequence[Layer], make: Callable[[Layer], A], own: Mapping[str, A], leaders: Mapping[str, str]
) -> dict[str, A]:
    """Add up over processes, of which each may have reached other layers (experts), in another order."""
    known: dict[str, str] = {}
    added: dict[str, A] = {}
    for others in gather_objects(dict(leaders)):
        for name, leader in others.items():
            if known.setdefault(name, leader) != leader:
                raise _shared_in_some(name, known[name])
    for layer in layers:  # each process takes its turns in this order
        if known.get(layer.name) == layer.name:
            added[layer.name] = own[layer.name] if layer.name in own else make(layer)
            added[layer.name].all_reduce()
    return {name: added[leader] for name, leader in known.items()}


def _shared_in_some(name: str, leader: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"layer {name!r} shares its input with {leader!r} in some batches only",
        do="Watch one of the two with include/exclude patterns.",
    )


def _rows(layer: Layer, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A layer's input rows, and which of them are real tokens."""
    if mask is not None and layer.expert is None and x.ndim == 2 and x.shape[0] == mask.numel():
        x = x.reshape(*mask.shape, -1)  # models that flatten the tokens of a batch
    least = 1 + len(getattr(layer.module, "kernel_size", ()))
    if x.ndim < least:
        raise CalibrationError(
            f"inputs of layer {layer.name!r}", found=f"{x.ndim} dimensions", expected=f"at least {least}"
        )
    rows = layer.rows(x)
    width = layer.weight_OI.shape[1]
    if rows.shape[-1] != width:
        raise CalibrationError(f"inputs of layer {layer.name!r}", found=f"{rows.shape[-1]} features", expected=width)
    if mask is None or mask.shape != rows.shape[:2] or bool(mask.all()):
        return rows, None
    return rows, mask


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without a key-value cache: a block that runs twice must not fill it twice."""
    configs: dict[int, Any] = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    cached = [config for config in configs.values() if getattr(config, "use_cache", False)]
    try:
        for config in cached:
            config.use_cache = False
        with evaluation_mode(model):
            yield
    finally:
        for config in cached:
            config.use_cache = True


def call_checked(model: nn.Module, batch: Batch, index: int) -> Any:
    """Call a model with a calibration batch; what goes wrong inside names the batch."""
    try:
        return call(model, batch)
    except (WeightsmithError, torch.OutOfMemoryError):
        raise
    except (TypeError, IndexError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            f"the model rejects calibration batch {index}", found=f"{type(error).__name__}: {error}"
        ) from error


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter; that of the processor without any.

    Examples
    --------
    >>> device_of(nn.Linear(1, 1))
    device(type='cpu')
    """
    return next((p.device for p in model.parameters()), torch.device("cpu"))
