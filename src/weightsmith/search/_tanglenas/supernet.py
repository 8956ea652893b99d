"""One network that holds all architectures of a space, and each of them as a network of its own."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from weightsmith.core.data import Batch, call
from weightsmith.core.errors import NonFiniteError, UnsupportedModelError
from weightsmith.core.linalg import is_finite
from weightsmith.core.models import build_empty, computed_by, device_of, evaluation_mode, get_module, resize
from weightsmith.core.symmetry import outputs_of
from weightsmith.search._tanglenas.dimensions import Choices, Space
from weightsmith.search._tanglenas.layers import SplitAttention, is_norm, mix_depth, prefix_norm
from weightsmith.search._tanglenas.space import find_space
from weightsmith.search._tanglenas.superposition import Architecture, ArchState, AxisCut, Part, Superposition, parts_of

__all__ = ["Supernet"]

TOLERANCE = {torch.float16: 0.1, torch.bfloat16: 0.1}
"""Largest difference of the outputs of a sub-network and its slice, relative; 1e-4 in other data types."""
FOLDED = 4
"""A layer with so many times more outputs than inputs, such as a head, has the mask on its inputs: fewer products."""
_numbers = itertools.count()


class Supernet:
    """A model whose weights are shared by all architectures of a space.

    While it is open, the model's forward pass mixes the choices with the weights of ``state``.

    Parameters
    ----------
    model : nn.Module
        The largest network. Parametrized in place; :meth:`close` restores it, with the trained weights.
    choices : mapping of str to sequence of float
        Values of each dimension, ascending; the last is the model's own. They are whole numbers; an ``mlp_ratio`` may
        be a fraction, such as 3.5, that gives every hidden size a whole feed-forward width. Names are fields of a
        transformers configuration (``hidden_size``, ``num_attention_heads``, ``intermediate_size`` or ``mlp_ratio``,
        ``num_hidden_layers``), or ``"PATH.out_channels"``, ``"PATH.out_features"``, ``"PATH.kernel_size"``,
        ``"PATH.depth"`` for the modules of other networks.
    batch : Batch
        An example of its inputs.
    generator : torch.Generator, optional
        Draws the first architecture parameters.

    Attributes
    ----------
    state : ArchState
        Architecture parameters, which are not among the model's, and the present weights of the choices.

    Raises
    ------
    HyperparameterError
        If a dimension or value is not possible; the message lists what is.
    NonFiniteError
        If the outputs are NaN or infinite.
    UnsupportedModelError
        If a sub-network's outputs differ from those of the mixture with all weight on it.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> net = Supernet(model, {"0.out_features": [2, 4, 8]}, torch.ones(1, 3))
    >>> net.state.fix({"0.out_features": 4})
    >>> mixed = model(torch.ones(1, 3))
    >>> small = net.extracted({"0.out_features": 4})
    >>> small[0].out_features, torch.allclose(small(torch.ones(1, 3)), mixed)
    (4, True)
    """

    def __init__(
        self, model: nn.Module, choices: Choices, batch: Batch, *, generator: torch.Generator | None = None
    ) -> None:
        for name, module in model.named_modules():
            for parameter in ("weight", "bias"):
                if hasattr(module, parameter) and computed_by(module, parameter):
                    raise UnsupportedModelError(f"{name!r} has a computed {parameter}", do="Fold it first.")
        self.model = model
        self.space: Space = find_space(model, choices, batch)
        self.state = ArchState(self.space.choices, generator).to(device_of(model))
        self._parts: dict[Any, Part] = {}
        self._handles: list[Any] = []
        self._forwards: list[nn.Module] = []
        self.parametrized: list[tuple[nn.Module, str]] = []
        """Modules and their tensors that are masked."""
        self._attention: list[tuple[Any, Any]] = []
        self.state.fix(self.space.largest)
        try:
            self._open()
            self._verify(batch)
        except BaseException:
            self.close()
            raise

    # --- the mixture

    def _open(self) -> None:
        space, tied = self.space, {*self.space.aliases, *self.space.aliases.values()}
        for name in [*space.axes, *space.aliases]:
            cuts = space.axes[space.aliases.get(name, name)]
            path, _, attribute = name.rpartition(".")
            module = get_module(self.model, path)
            if attribute not in module._parameters:  # running statistics
                continue
            masked = [None if (name, axis) in space.split else cut for axis, cut in enumerate(cuts)]
            if not any(masked):
                continue
            if is_norm(module):
                if attribute == "weight":
                    self._normalize(module, masked)
            elif isinstance(module, nn.Embedding):
                self._fold(module, masked[1], outputs=True)
            elif (name in tied or _wide_head(module)) and self._only(module, masked):
                self._fold(module, masked[_inputs(module)], outputs=False)
            elif name in tied:
                raise UnsupportedModelError(f"{name!r} is tied", do="Untie it first.")
            else:
                self._parametrize(module, attribute, masked)
        if space.stack is not None:
            self._handles += mix_depth(space.stack, space.depth, self.state)
        if space.heads is not None:
            self._split_attention()

    def _part(self, cuts: list[AxisCut | None]) -> tuple[Part, ...]:
        return parts_of(cuts, self.space.sizes, device_of(self.model), self._parts)

    def _only(self, module: nn.Module, masked: list[AxisCut | None]) -> bool:
        """Whether only the inputs of a linear layer depend on a choice."""
        return isinstance(module, (nn.Linear, Conv1D)) and [
            axis for axis, cut in enumerate(masked) if cut is not None
        ] == [_inputs(module)]

    def _parametrize(self, module: nn.Module, attribute: str, cuts: list[AxisCut | None]) -> None:
        superposition = Superposition(self.state, self._part(cuts), len(cuts))
        parametrize.register_parametrization(module, attribute, superposition, unsafe=True)
        self.parametrized.append((module, attribute))

    def _fold(self, module: nn.Module, cut: AxisCut | None, *, outputs: bool) -> None:
        """Mask the last axis of a module's outputs or inputs: as exact as masking its weight, which may be tied."""
        if cut is None:
            raise UnsupportedModelError("the number of embeddings cannot be chosen")
        mask = Superposition(self.state, self._part([cut]), 1)
        if outputs:
            self._handles.append(module.register_forward_hook(lambda module, args, out: mask(out)))
        else:
            self._handles.append(module.register_forward_pre_hook(lambda module, args: (mask(args[0]), *args[1:])))

    def _normalize(self, module: nn.Module, cuts: list[AxisCut | None]) -> None:
        (cut,) = cuts
        assert cut is not None
        self.replace_forward(module, prefix_norm(module, cut, self._part([cut])[0], self.state))

    def replace_forward(self, module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        """Give a module another forward pass until the network is closed."""
        module.forward = forward
        self._forwards.append(module)

    def _split_attention(self) -> None:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        assert self.space.heads is not None
        model: Any = self.model
        config, name = model.config, f"tanglenas_{next(_numbers)}"
        ALL_ATTENTION_FUNCTIONS.register(name, SplitAttention(self.space.heads, self.state))
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, sdpa_mask)
        own = copy.deepcopy(config)  # another model may share the configuration
        own._attn_implementation = name
        for module in self.model.modules():
            if vars(module).get("config") is config:
                module.config = own
                self._attention.append((module, config))

    def close(self) -> None:
        """Restore the model: its parameters are plain again and hold the weights of the largest network."""
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        for handle in self._handles:
            handle.remove()
        for module in self._forwards:
            del module.forward
        for module, attribute in reversed(self.parametrized):
            _restore(module, attribute)
        for module, config in self._attention:
            for functions in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
                functions._global_mapping.pop(module.config._attn_implementation, None)
            module.config = config
        self._handles, self._forwards, self.parametrized, self._attention = [], [], [], []

    # --- one architecture

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the weights: those of the largest network."""
        return self.model.parameters()

    def arch_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the architecture parameters."""
        return self.state.parameters()

    def extracted(self, architecture: Architecture) -> nn.Module:
        """Return one architecture as a network of its own, with the weights it has here; the model stays.

        Raises
        ------
        HyperparameterError
            If it is not in the space; the message lists the values that are.
        """
        self.state.check(architecture)
        tensors = {name: tensor.detach() for name, tensor in _plain_state(self.model)}
        cut = {name: self._cut(name, tensor, architecture) for name, tensor in tensors.items()}
        if isinstance(self.model, PreTrainedModel):
            return self._configured(architecture, cut)
        return self._modular(architecture, cut)

    def extract(self, architecture: Architecture) -> None:
        """Close, and make the model itself the network of one architecture; hooks of its modules are lost."""
        new = self.extracted(architecture)
        self.close()
        self.become(new)

    def become(self, new: nn.Module) -> None:
        """Make the model, which is closed, another network of its class."""
        for module in self.model.modules():  # whoever holds a parameter of the old ones holds no gradient
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.grad = None
        training = self.model.training
        vars(self.model).clear()
        vars(self.model).update(vars(new))
        self.model.train(training)

    def _cut(self, name: str, tensor: Tensor, architecture: Architecture) -> Tensor:
        key = self.space.aliases.get(name, name)
        for axis in range(tensor.ndim):
            positions = self.space.positions(key, axis, architecture)
            if positions is not None:
                tensor = tensor.index_select(axis, positions.to(tensor.device))
        return tensor.clone()

    def _configured(self, architecture: Architecture, cut: dict[str, Tensor]) -> nn.Module:
        model: Any = self.model
        new: Any = build_empty(model, self.space.fields(architecture))
        if isinstance(new, str):
            raise UnsupportedModelError(f"{architecture} is no configuration of the model", found=new)
        config = self._attention[0][1] if self._attention else model.config
        new.config._attn_implementation = config._attn_implementation
        new.config.architectures = copy.copy(model.config.architectures)
        new.config.name_or_path = model.config.name_or_path
        names = {*new.state_dict()}
        new.load_state_dict({name: tensor for name, tensor in cut.items() if name in names}, assign=True)
        new.tie_weights()
        for module in new.modules():  # what is not stored, such as tables of positions, follows the configuration
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device_of(model))
        if getattr(model, "generation_config", None) is not None:
            new.generation_config = copy.deepcopy(model.generation_config)
        trained = {name.replace("parametrizations.", "").replace(".original", ""): parameter.requires_grad
                   for name, parameter in model.named_parameters()}  # fmt: skip
        for name, parameter in new.named_parameters():
            parameter.requires_grad_(trained.get(name, True))
        return new.train(model.training)

    def _modular(self, architecture: Architecture, cut: dict[str, Tensor]) -> nn.Module:
        new = _plain_copy(self)
        for name, tensor in [*new.named_parameters(), *new.named_buffers()]:
            if name in cut:
                tensor.data = cut[name]
                tensor.grad = None
        for path in {key.rpartition(".")[0] for key in self.space.axes}:
            module: Any = get_module(new, path)
            if isinstance(module, nn.LayerNorm):
                module.normalized_shape = tuple(module.weight.shape)
            resize(module)
        for path, dim in self.space.kernels.items():
            _shrink_kernel(get_module(new, path), architecture[dim])
        if self.space.stack is not None:
            _shorten(new, self.space.stack, architecture[self.space.depth])
        return new

    # --- the invariant

    def _verify(self, batch: Batch) -> None:
        """Compare sub-networks with the mixture that has all weight on them: the outputs must be the same."""
        space, largest = self.space, self.space.largest
        smallest = {name: values[0] for name, values in space.choices.items()}
        alone = [largest | {name: value} for name, value in smallest.items()]
        random = self.state.random(torch.Generator().manual_seed(0))
        for architecture in [*alone, smallest, random]:
            gap = self.difference(architecture, batch)
            dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
            if not gap <= TOLERANCE.get(dtype, 1e-4):
                changed = [name for name, value in architecture.items() if value != largest[name]]
                raise UnsupportedModelError(
                    f"sub-networks of other {' and '.join(changed)} compute something else than the slices of the "
                    f"largest network",
                    found=f"outputs that differ by {gap:.1%}",
                    do=f"Leave {' or '.join(changed)} out of the space: a constant of the model may depend on it.",
                )
        self.state.fix(largest)

    @torch.no_grad()
    def difference(self, architecture: Architecture, batch: Batch) -> float:
        """Return the largest difference of the outputs of a sub-network and of the mixture, relative."""
        small = self.extracted(architecture)
        self.state.fix(architecture)
        with evaluation_mode(self.model), evaluation_mode(small):
            pairs = list(zip(_tensors(call(self.model, batch)), _tensors(call(small, batch)), strict=True))
        if not all(map(is_finite, itertools.chain.from_iterable(pairs))):
            raise NonFiniteError("outputs of the model hold NaN or infinity", do="Check the data and the weights.")
        gaps = [
            float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) if a.shape == b.shape else float("inf")
            for a, b in pairs
        ]
        return max(gaps, default=0.0)


def _tensors(output: Any) -> list[Tensor]:
    """The outputs: logits where there are some, as caches have the shape of the heads."""
    logits = getattr(output, "logits", None)
    found = [logits] if isinstance(logits, Tensor) else outputs_of(output)
    return [tensor.float() for tensor in found if tensor.is_floating_point() and tensor.numel()]


def _wide_head(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.out_features >= FOLDED * module.in_features


def _inputs(module: nn.Module) -> int:
    return 0 if isinstance(module, Conv1D) else 1


def _plain_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The state as of the plain model: the parametrized tensors under their own names."""
    for name, tensor in model.state_dict().items():
        if ".parametrizations." in f".{name}":
            path, _, rest = name.rpartition("parametrizations.")
            yield path + rest.removesuffix(".original"), tensor
        else:
            yield name, tensor


def _restore(module: nn.Module, attribute: str) -> None:
    """Undo a parametrization; the parameter stays the same object."""
    held: Any = module.parametrizations
    plain, original = parametrize.type_before_parametrizations(module), held[attribute].original
    del held[attribute]
    if not len(held):
        module.__class__ = plain
        del module.parametrizations
    kept = dict(module._parameters)
    module._parameters.clear()
    for name in sorted({*kept, attribute}, reverse=True):  # a weight before its bias, as layers have them
        module._parameters[name] = original if name == attribute else kept[name]


def _plain_copy(net: Supernet) -> nn.Module:
    """A copy of the model without masks and hooks."""
    other = Supernet.__new__(Supernet)
    other.__dict__.update(net.__dict__)
    known: dict[int, Any] = {id(net.state): net.state}
    copied = copy.deepcopy(net.model, known)
    for module, attribute in reversed(net.parametrized):
        _restore(known[id(module)], attribute)
    for module in net._forwards:
        vars(known[id(module)]).pop("forward", None)
    for handle in net._handles:
        for module in copied.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                hooks.pop(handle.id, None)
    return copied


def _shrink_kernel(module: Any, size: int) -> None:
    """Set the attributes of a convolution whose kernel was cut around its center."""
    less = (module.kernel_size[0] - size) // 2
    module.kernel_size = (size,) * len(module.kernel_size)
    if isinstance(module.padding, tuple):
        module.padding = tuple(p - less * d for p, d in zip(module.padding, module.dilation, strict=True))
    like = type(module)(
        1, 1, size, padding=module.padding, dilation=module.dilation, padding_mode=module.padding_mode, device="meta"
    )
    module._reversed_padding_repeated_twice = like._reversed_padding_repeated_twice


def _shorten(model: nn.Module, stack: Any, depth: int) -> None:
    """Keep the first blocks of a stack."""
    container: Any = get_module(model, stack.path)
    blocks = list(container.children())
    container._modules.clear()
    for place, block in enumerate([*blocks[: stack.start + depth], *blocks[stack.stop :]]):
        container._modules[str(place)] = block
