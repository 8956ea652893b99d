"""Feed the inputs of layers to running statistics while a model, or a block of it, runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightsmith.core.caller import usual_settings
from weightsmith.core.data import Batch, Batches, as_batches, call, to_device
from weightsmith.core.errors import CalibrationError, WeightsmithError
from weightsmith.core.io import lacks_weights, offloaded_of
from weightsmith.core.models._experts import watching_experts
from weightsmith.core.models._find_blocks import find_blocks
from weightsmith.core.models._layers import Layer, evaluation_mode
from weightsmith.core.models._products import products_in_float32
from weightsmith.core.models._token_masks import StreamMasks, TokenMasks, token_masks
from weightsmith.core.processes import gather_objects, plain_model

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
    *,
    shared: bool = True,
) -> dict[str, A]:
    """Accumulate the inputs of layers over several runs, each with what says which tokens are real.

    Parameters
    ----------
    layers, make
        As for :func:`observe`.
    runs : sequence of (run, masks)
        What runs, and what returns the masks of the part that runs now.
    shared : bool, default: True
        Whether layers that receive the very same tensors share one accumulator.
    """
    sums = _Sums(make, shared=shared)
    masks: Callable[[], TokenMasks] = TokenMasks

    def hook(layer: Layer) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            with usual_settings():
                sums.see(layer, x, masks().of(x))

        return see

    def see_expert(layer: Layer, x: Tensor, token: Tensor) -> None:
        own = masks().own
        with usual_settings():
            sums.see(layer, x[None], None if own is None else own.flatten()[token][None])

    modules = [layer for layer in layers if layer.expert is None]
    hooks = [layer.module.register_forward_pre_hook(hook(layer), with_kwargs=True) for layer in modules]
    try:
        with watching_experts(layers, see_expert):
            for run, masks in runs:  # noqa: B007 - the hooks read masks
                run()
                sums.take_in()
    finally:
        for handle in hooks:
            handle.remove()
    return _of_all_processes(layers, make, sums.of)


class _Sums(Generic[A]):
    """The accumulators of layers; those that received the very same tensors so far have the same one.

    A tensor that several layers may receive waits until another one comes: only then it is known which layers did.
    """

    def __init__(self, make: Callable[[Layer], A], *, shared: bool) -> None:
        self.of: dict[str, A] = {}
        self._make, self._shared = make, shared
        self._sharing: dict[int, int] = {}  # how many layers have the same accumulator, by its id
        self._layers: list[Layer] = []
        self._key: tuple[Any, ...] = ()
        self._x: Tensor | None = None
        self._rows: tuple[Tensor, Tensor | None] | None = None

    def see(self, layer: Layer, x: Tensor, mask: Tensor | None) -> None:
        """Note that a layer receives a tensor."""
        if not self._shared or layer.expert is not None or x.is_inference():  # which does not tell of changes in place
            self.take_in()
            self._feed([layer], *_rows(layer, x, mask))
            return
        key = (x._version, _unfolding(layer))  # a tensor that was changed in place is another one
        if x is not self._x or key != self._key or any(layer.name == other.name for other in self._layers):
            self.take_in()
            rows, real = _rows(layer, x, mask)
            if rows.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
                rows = rows.clone()  # the model may change its tensor in place while this one waits
            self._x, self._key, self._rows = x, key, (rows, real)
        self._layers.append(layer)

    def take_in(self) -> None:
        """Feed the waiting tensor to the accumulators of the layers that received it."""
        if self._rows is not None:
            self._feed(self._layers, *self._rows)
        self._layers, self._x, self._rows = [], None, None

    def _feed(self, layers: Sequence[Layer], rows: Tensor, real: Tensor | None) -> None:
        groups: dict[int | None, list[Layer]] = {}
        for layer in layers:
            known = self.of.get(layer.name)
            groups.setdefault(None if known is None else id(known), []).append(layer)
        for number, group in groups.items():
            if number is None:
                sums = self._make(group[0])
            else:
                sums = self.of[group[0].name]
                if self._sharing[number] > len(group):  # the other layers that had it did not receive this tensor
                    self._sharing[number] -= len(group)
                    sums = copy.deepcopy(sums)
            sums.update(rows, real)
            self._sharing[id(sums)] = len(group)
            self.of |= {layer.name: sums for layer in group}


def _unfolding(layer: Layer) -> tuple[Any, ...]:
    """What makes rows of a layer's input: layers with the same have the same rows of the same tensor."""
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    return tuple(getattr(layer.module, name, None) for name in names) if layer.expert is None else ()


def _of_all_processes(layers: Sequence[Layer], make: Callable[[Layer], A], own: Mapping[str, A]) -> dict[str, A]:
    """Add up over processes, of which each may have reached other layers (experts), in another order."""
    firsts: dict[int, str] = {}
    leaders = {name: firsts.setdefault(id(sums), name) for name, sums in own.items()}
    everywhere = gather_objects(leaders)
    known = dict.fromkeys(name for others in everywhere for name in others)
    # layers share an accumulator where they do so in every process
    group_of = {name: tuple(others.get(name) for others in everywhere) for name in known}
    added: dict[tuple[str | None, ...], A] = {}
    used: set[int] = set()
    for layer in layers:  # each process takes its turns in this order
        if layer.name in known and (group := group_of[layer.name]) not in added:
            sums = own[layer.name] if layer.name in own else make(layer)
            added[group] = copy.deepcopy(sums) if id(sums) in used else sums
            used.add(id(sums))
    for sums in added.values():
        sums.all_reduce()
    return {name: added[group_of[name]] for name in known}


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
    """Evaluation mode without compiled code, which does not run hooks, and without a key-value cache.

    A block that runs twice must not fill a cache twice.
    """
    compiled = any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules())
    configs: dict[int, Any] = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    cached = [config for config in configs.values() if getattr(config, "use_cache", False)]
    try:
        for config in cached:
            config.use_cache = False
        with evaluation_mode(model), torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        for config in cached:
            config.use_cache = True


def call_checked(model: nn.Module, batch: Batch, index: int) -> Any:
    """Call a model with a calibration batch; what goes wrong inside names the batch."""
    try:
        return call(plain_model(model), batch)
    except (WeightsmithError, torch.OutOfMemoryError):
        raise
    except (TypeError, LookupError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
        if offloaded_of(model) is not None and lacks_weights(error):
            raise
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
