"""Run a model on one batch and observe which axes of which tensors share their order."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from weightsmith.core.data import Batch, call
from weightsmith.core.models import evaluation_mode
from weightsmith.core.symmetry._axes import Axis, TensorAxes, fixed, tensors_in
from weightsmith.core.symmetry._rules import arguments_of, rule_of
from weightsmith.core.tied import tensor_owners

__all__ = ["Trace", "leaves_of", "outputs_of", "trace"]


class Trace(TensorAxes):
    """The axes of a network's tensors, as one forward pass relates them.

    Parameters
    ----------
    leaves : mapping of str to Tensor
        Parameters and buffers; each under one name.

    Attributes
    ----------
    reached : set of str
        Names of the leaves that an operation read.
    inputs, outputs : dict of str to tuple of Axis
        By name of a module that holds leaves: the axes of its first call's input, and of its output.
    """

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.reached: set[str] = set()
        self.inputs: dict[str, tuple[Axis, ...]] = {}
        self.outputs: dict[str, tuple[Axis, ...]] = {}
        self._names = {id(tensor): name for name, tensor in leaves.items()}
        self._storages: dict[int, list[Tensor]] = {}
        for tensor in leaves.values():
            self.set(tensor, map(Axis, tensor.shape))
            if tensor.numel():
                self._storages.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)

    def dims(self, tensor: Tensor) -> tuple[Axis, ...]:
        """Return the axes of a tensor; those of a constant are fixed, a view's may be a leaf's."""
        if id(tensor) in self._names:
            self.reached.add(self._names[id(tensor)])
        elif not self.knows(tensor) and tensor.numel():
            for leaf in self._storages.get(tensor.untyped_storage().data_ptr(), []):
                if _layout(leaf) == _layout(tensor):
                    self.set(tensor, self.dims(leaf))
                    break
                self.fix(leaf, "is read through a view that was made outside the forward pass")
        return super().dims(tensor)

    def follow(self, func: Any, out: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Apply the rule of an operation that was run; where there is none, fix everything involved."""
        rule = rule_of(func)
        if rule is None or rule(self, out, **arguments_of(func, args, kwargs)) is NotImplemented:
            for tensor in tensors_in([args, kwargs]):
                self.fix(tensor, f"goes through {func.overloadpacket}, whose effect on axes is not known")
            for tensor in tensors_in(out):
                if not self.knows(tensor):
                    self.set(tensor, map(fixed, tensor.shape))
        for tensor in tensors_in(out):
            self.record(*self.dims(tensor))


class _Tracer(TorchDispatchMode):
    """Shows every operation to a trace; one without a rule as the operations that torch decomposes it into."""

    def __init__(self, seen: Trace) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if rule_of(func) is None and next(tensors_in([args, kwargs]), None) is not None:
            with self:
                out = decomposition_table.get(func, func.decompose)(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = _run(func, args, kwargs)
        self.seen.follow(func, out, args, kwargs)
        return out


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


def trace(model: nn.Module, leaves: Mapping[str, Tensor], batch: Batch) -> Trace:
    """Run ``model`` on ``batch`` in evaluation mode; the axes of inputs and outputs are fixed.

    Parameters
    ----------
    model : nn.Module
        Any model; its weights are only read.
    leaves : mapping of str to Tensor
        What may be permuted, each tensor under one name.
    batch : Batch
        A batch of the model.
    """
    seen = Trace(leaves)
    for tensor in tensors_in([batch]):
        seen.fix(tensor)
    holders = {leaf.rpartition(".")[0] for leaf in leaves}
    with _plain_kernels(), evaluation_mode(model), torch.no_grad(), ExitStack() as hooks:
        for name, module in model.named_modules():
            if name in holders:
                hooks.enter_context(_observed(seen, name, module))
        with _Tracer(seen):
            out = call(model, batch)
        for tensor in outputs_of(out):
            seen.fix(tensor)
    return seen


@contextmanager
def _observed(seen: Trace, name: str, module: nn.Module) -> Iterator[None]:
    """Note the axes of a module's input and output."""

    def note(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        for noted, values in ((seen.inputs, [args, kwargs]), (seen.outputs, out)):
            if name not in noted and (first := next(tensors_in(values), None)) is not None:
                noted[name] = seen.dims(first)

    handle = module.register_forward_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def leaves_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the parameters and saved floating buffers under their first names, and the first names of aliases."""
    state = model.state_dict(keep_vars=True)
    state = {
        name: x for name, x in state.items() if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())
    }
    owners = tensor_owners(state)
    leaves = {name: tensor for name, tensor in state.items() if owners[name] == name}
    return leaves, {name: owner for name, owner in owners.items() if owner != name}


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def outputs_of(out: Any) -> Iterator[Tensor]:
    """Iterate over a model's outputs: its logits where it names them, or all but its cache of keys and values."""
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
    with (
        warnings.catch_warnings(action="ignore"),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
    ):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
