"""Run a model on one batch and observe which axes of which tensors share their order."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from weightsmith.core.data import Batch, call, in_model_dtype
from weightsmith.core.models import evaluation_mode
from weightsmith.core.symmetry._axes import Axis, TensorAxes, fixed, tensors_in
from weightsmith.core.symmetry._rules import AxisRule, arguments_of, rule_of
from weightsmith.core.symmetry._symmetry import Side
from weightsmith.core.tied import tensor_owners

__all__ = ["Trace", "activations_noted", "leaves_of", "outputs_of", "trace"]


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
    activations : dict of tuple of (str, {"input", "output"}) to tuple of Axis
        By name of a module that holds leaves: the axes of its first call's input, and of its output.
    """

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.reached: set[str] = set()
        self.activations: dict[tuple[str, Side], tuple[Axis, ...]] = {}
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

    def follow(
        self, func: Any, rule: AxisRule | None, out: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Apply the rule of an operation that was run; where there is none, fix everything involved."""
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
        rule = rule_of(func)
        if rule is None and next(tensors_in([args, kwargs]), None) is not None:
            try:
                with self:
                    out = decomposition_table.get(func, func.decompose)(*args, **kwargs)
            except Exception:  # whatever the decomposition does not support, the operation itself may
                out = NotImplemented
            if out is not NotImplemented:
                return out
        out = _run(func, args, kwargs)
        self.seen.follow(func, rule, out, args, kwargs)
        return out


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation; a product with a matrix that is one zero in memory is known, and the matrix stays small."""
    products = torch.ops.aten.mm.default, torch.ops.aten.addmm.default
    if func in products and not kwargs and any(_is_one_zero(matrix) for matrix in args[-2:]):
        *added, a, b = args
        zeros = a.new_zeros(a.shape[0], b.shape[1])
        return zeros + added[0] if added else zeros
    if func is torch.ops.aten._grouped_mm.default and args[1].ndim == 3 and _is_one_zero(args[1]):
        return args[0].new_zeros(args[0].shape[0], args[1].shape[2])
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
    batch = in_model_dtype(batch, model)  # here, so that what is fixed is what the model gets
    for tensor in tensors_in([batch]):
        seen.fix(tensor)
    holders = {leaf.rpartition(".")[0] for leaf in leaves}

    def note(name: str, side: Side, tensor: Tensor) -> None:
        if (name, side) not in seen.activations:
            seen.activations[name, side] = seen.dims(tensor)

    with _plain_kernels(), evaluation_mode(model), torch.no_grad(), activations_noted(model, holders, note):
        with _Tracer(seen):
            out = call(model, batch)
        for tensor in outputs_of(out):
            seen.fix(tensor)
    return seen


@contextmanager
def activations_noted(
    model: nn.Module, names: Container[str], note: Callable[[str, Side, Tensor], None]
) -> Iterator[None]:
    """While the context lasts, call ``note(name, side, tensor)`` with each input and output of the named modules.

    Of several inputs or outputs it is the first tensor.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    >>> with activations_noted(model, ["0"], lambda name, side, tensor: print(name, side, tuple(tensor.shape))):
    ...     _ = model(torch.zeros(1, 3))
    0 input (1, 3)
    0 output (1, 2)
    """

    def hook(name: str) -> Callable[..., None]:
        def look(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            sides: tuple[tuple[Side, Any], ...] = (("input", [args, kwargs]), ("output", out))
            for side, values in sides:
                for tensor in itertools.islice(tensors_in(values), 1):
                    note(name, side, tensor)

        return look

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name in names:
                hooks.callback(module.register_forward_hook(hook(name), with_kwargs=True).remove)
        yield


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
