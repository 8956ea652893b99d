"""Run a model on one batch and watch which axes of which tensors go in step."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from weightsmith.core.data import Batch, call
from weightsmith.core.models import evaluation_mode
from weightsmith.merge._weight_matching.axes import Axis
from weightsmith.merge._weight_matching.rules import rule_of
from weightsmith.merge._weight_matching.steps import tensors

__all__ = ["Tracer", "holders", "leaves_of", "outputs_of", "trace"]


class Tracer(TorchDispatchMode):
    """Gives every dimension of every tensor an axis, and unifies axes as operations run.

    Parameters
    ----------
    leaves : mapping of str to Tensor
        Parameters and buffers; each under one name.

    Attributes
    ----------
    spaces : list of tuple of Axis
        What each operation loops over: the dimensions of its result and those it sums over.
    reached : set of str
        Names of the leaves that an operation read.
    inputs, outputs : dict of str to tuple of Axis
        By name of a module that holds leaves: the axes of what it was first called with, and of what it returned.
    """

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.spaces: list[tuple[Axis, ...]] = []
        self.reached: set[str] = set()
        self.inputs: dict[str, tuple[Axis, ...]] = {}
        self.outputs: dict[str, tuple[Axis, ...]] = {}
        self._known: dict[int, tuple[Tensor, tuple[Axis, ...], tuple[int, ...]]] = {}
        self._names = {id(tensor): name for name, tensor in leaves.items()}
        self._storages: dict[int, list[Tensor]] = {}
        for tensor in leaves.values():
            self.set(tensor, tuple(Axis(size) for size in tensor.shape))
            if tensor.numel():
                self._storages.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = _run(func, args, kwargs)
        rule = rule_of(func)
        if rule is None or rule(self, out, *args, **kwargs) is NotImplemented:
            self._give_up(func, out, args, kwargs)
        for tensor in tensors(out):
            self.record(*self.dims(tensor))
        return out

    def dims(self, tensor: Tensor) -> tuple[Axis, ...]:
        """The axes of a tensor; those of a constant are fixed."""
        if id(tensor) in self._known:
            if id(tensor) in self._names:
                self.reached.add(self._names[id(tensor)])
            return self._known[id(tensor)][1]
        same = self._storages.get(tensor.untyped_storage().data_ptr(), []) if tensor.numel() else []
        for leaf in same:
            if _layout(leaf) == _layout(tensor):
                self.set(tensor, self.dims(leaf))
                return self.dims(tensor)
            self.fix(leaf, "is read through a view that was made outside the forward pass")
        self.set(tensor, tuple(Axis(size, fixed=True) for size in tensor.shape))
        return self._known[id(tensor)][1]

    def set(self, tensor: Tensor, dims: tuple[Axis, ...]) -> None:
        """Give a tensor its axes."""
        self._known[id(tensor)] = tensor, dims, tensor.stride()

    def strides(self, tensor: Tensor) -> tuple[int, ...]:
        """The strides a tensor had when it got its axes, before an operation changed them in place."""
        return self._known[id(tensor)][2]

    def knows(self, tensor: Tensor) -> bool:
        """Whether the tensor has axes already, as the result of an operation in place."""
        return id(tensor) in self._known

    def fix(self, tensor: Tensor, reason: str = "") -> None:
        """Fix all axes of a tensor."""
        for axis in self.dims(tensor):
            axis.fix(reason)

    def record(self, *space: Axis) -> None:
        """Note what an operation loops over."""
        self.spaces.append(space)

    def _give_up(self, func: Any, out: Any, args: Any, kwargs: Any) -> None:
        inputs = [*tensors(args), *tensors(kwargs)]
        name = str(func.overloadpacket)
        for tensor in inputs:
            self.fix(tensor, f"goes through {name}, whose effect on axes is not known")
        for tensor in tensors(out):
            if not self.knows(tensor):
                self.set(tensor, tuple(Axis(size, fixed=True) for size in tensor.shape))


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation; a product with a matrix that is one zero in memory is known, and the matrix stays small."""
    products = torch.ops.aten.mm.default, torch.ops.aten.addmm.default
    if func in products and not kwargs and any(_is_one_zero(matrix) for matrix in args[-2:]):
        *added, a, b = args
        zeros = a.new_zeros(a.shape[0], b.shape[1])
        return zeros + added[0] if added else zeros
    return func(*args, **kwargs)


def _is_one_zero(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and not any(tensor.stride()) and not tensor[(0,) * tensor.ndim]


def trace(model: nn.Module, leaves: Mapping[str, Tensor], batch: Batch) -> Tracer:
    """Run ``model`` on ``batch`` in evaluation mode; the axes of inputs and outputs are fixed.

    Parameters
    ----------
    model : nn.Module
        Any model; its weights are only read.
    leaves : mapping of str to Tensor
        What may be permuted, each tensor under one name.
    batch : Batch
        A batch it can be called with.
    """
    tracer = Tracer(leaves)
    for tensor in tensors([batch]):
        tracer.fix(tensor)
    with _plain_kernels(), evaluation_mode(model), torch.no_grad(), ExitStack() as hooks:
        for name, module in holders(model, leaves):
            hooks.enter_context(_looking(tracer, name, module))
        with tracer:
            out = call(model, batch)
        for tensor in outputs_of(out):
            tracer.fix(tensor)
    return tracer


def holders(model: nn.Module, leaves: Iterable[str]) -> list[tuple[str, nn.Module]]:
    """The modules that hold some of the leaves themselves."""
    names = {leaf.rpartition(".")[0] for leaf in leaves}
    return [(name, module) for name, module in model.named_modules() if name in names]


@contextmanager
def _looking(tracer: Tracer, name: str, module: nn.Module) -> Iterator[None]:
    """Note the axes of a module's input and output."""

    def look(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        for noted, values in ((tracer.inputs, [args, kwargs]), (tracer.outputs, out)):
            if name not in noted and (first := next(tensors(values), None)) is not None:
                noted[name] = tracer.dims(first)

    handle = module.register_forward_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def leaves_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The parameters and saved floating buffers of a model under their first names, and the names of their aliases."""
    state = model.state_dict(keep_vars=True)
    first: dict[Any, str] = {}
    leaves, aliases = {}, {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        key = (tensor.untyped_storage().data_ptr(), _layout(tensor)) if tensor.numel() else id(tensor)
        if key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            leaves[name] = tensor
    return leaves, aliases


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def outputs_of(out: Any) -> Iterator[Tensor]:
    """The tensors a model is asked for: its logits where it names them, or all but its cache of keys and values."""
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping):
        for name, value in out.items():
            if name == "logits" or ("logits" not in out and name != "past_key_values"):
                yield from outputs_of(value)
    elif isinstance(out, (list, tuple)):
        for value in out:
            yield from outputs_of(value)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Attention, recurrent layers and encoder layers as their elementary operations, not as one fused one."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
