"""Decode without the framework's overhead: one token through a decoder block in two kernel calls.

A sparse block of a small model multiplies for some 250 µs, and the fifty small operations around cost as much again.
Blocks of the common form, recognised by their structure and not by their class, take a shortcut for single tokens:

    x + o(attention(rope(q, k, v of norm(x)))), then x + down(act(gate(norm(x))) * up(norm(x)))

The shortcut is tried against the block itself before it is taken; blocks that differ keep their own forward pass.
Everything but single tokens goes there anyway.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.sparsify._wina.linear import SparseLinear, weight_state
from weightsmith.sparsify._wina.siblings import BITS, Siblings, lock

__all__ = ["DecoderBlock", "HeadLinear", "lengthen", "norm_gain", "shorten"]

TOLERANCE = 1e-4
"""Relative difference between shortcut and block that rounding explains."""

ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    functional.silu,
    functional.gelu,
    lambda x: functional.gelu(x, approximate="tanh"),
    functional.relu,
)
"""In the order of the kernel's constants."""


def norm_gain(norm: nn.Module, width: int) -> Float[Tensor, " width"]:
    """Gain of a norm, found by asking it: a vector of alternating ±1024 has mean 0, and a mean square beyond any eps.

    It is right however the module writes its gain (``weight``, ``1 + weight``), and for layer norms with a bias.

    Examples
    --------
    >>> norm = nn.LayerNorm(2)
    >>> _ = norm.weight.data.copy_(torch.tensor([2.0, -3.0])), norm.bias.data.fill_(7.0)
    >>> norm_gain(norm, 2).round(decimals=3)
    tensor([ 2., -3.])
    """
    like = next(norm.parameters())
    probe = torch.ones(1, 1, width, dtype=like.dtype, device=like.device)
    probe[..., 1::2] = -1
    with torch.no_grad():
        return (probe * (norm(1024 * probe) - norm(-1024 * probe)) / 2).reshape(-1)


def shorten(block: nn.Module) -> bool:
    """Give a block the shortcut if it has the common form and the shortcut computes what the block does.

    Returns
    -------
    bool
        Whether it does.
    """
    try:
        shortcut = DecoderBlock(block)
    except (_OtherFormError, AttributeError, TypeError):
        return False
    if not shortcut.agrees():
        return False
    block.forward = shortcut.forward
    return True


def lengthen(module: nn.Module) -> None:
    """Take a block's shortcut away, where it has one."""
    if isinstance(getattr(module.__dict__.get("forward"), "__self__", None), DecoderBlock):
        del module.forward


class _OtherFormError(Exception):
    """The block is not of the common form."""


class DecoderBlock:
    """A decoder block of sparse layers whose single tokens take the shortcut.

    Parameters
    ----------
    block : nn.Module
        The block. Its parts are told apart by what they share and by their sizes.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.usual = block.forward
        groups: dict[int, Siblings] = {}
        sparse = {n: m for n, m in block.named_modules() if isinstance(m, SparseLinear)}
        for layer in sparse.values():
            if layer.siblings is None or layer.select != "threshold" or layer.weight.dtype != torch.float32:
                raise _OtherFormError
            groups.setdefault(id(layer.siblings), layer.siblings)
        if [len(group.members) for group in groups.values()] != [3, 1, 2, 1]:
            raise _OtherFormError
        self.qkv, self.out, self.gate_up, self.down = groups.values()
        self.width = width = self.qkv.inputs
        queries, keys, values = self.qkv.outs
        gate, up = self.gate_up.outs
        sizes = (keys, self.out.inputs, self.gate_up.inputs, *self.out.outs, *self.down.outs, gate, self.down.inputs)
        if sizes != (values, queries, width, width, width, up, up):
            raise _OtherFormError

        name = next(n for n, m in sparse.items() if m is self.qkv.members[0])
        self.attention = block.get_submodule(name.rpartition(".")[0])
        self.head_size = int(self.attention.head_dim)  # type: ignore[arg-type]
        self.heads, self.kv_heads = queries // self.head_size, keys // self.head_size
        self.scale, self.layer = float(self.attention.scaling), int(self.attention.layer_idx)  # type: ignore[arg-type]
        self.norms = _norms(block, width, 2)
        self.head_norms = _norms(self.attention, self.head_size, 2) or ()
        if len(self.norms) != 2:
            raise _OtherFormError
        name = next(n for n, m in sparse.items() if m is self.gate_up.members[0])
        self.activation = _activation(block.get_submodule(name.rpartition(".")[0]))
        self.inside = [module for module in block.modules() if module is not block]
        self._state: tuple[Any, ...] = ()

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Take the shortcut where it leads to the same place, the block's own forward pass elsewhere."""
        cache = kwargs.get("cache")
        cache = kwargs.get("past_key_values") if cache is None else cache
        if (
            torch.compiler.is_compiling()
            or hidden_states.numel() != self.width
            or args
            or cache is None
            or kwargs.get("attention_mask") is not None
            or kwargs.get("position_embeddings") is None
            or kwargs.get("output_attentions")
            or hidden_states.dtype != torch.float32
            or self.block.training
            or torch.is_grad_enabled()
            or any(module._forward_hooks or module._forward_pre_hooks for module in self.inside)
        ):
            return self.usual(hidden_states, *args, **kwargs)
        return self.step(hidden_states, cache, *kwargs["position_embeddings"])

    def step(self, hidden: Tensor, cache: Any, cos: Tensor, sin: Tensor) -> Tensor:
        """One token through the block."""
        from weightsmith.sparsify._wina.kernels.decoder import after_cache, before_cache

        with lock:
            norms = self._norm_arrays()
            x, y = hidden.detach().reshape(-1).numpy(), torch.empty(self.width)
            projected = torch.empty(sum(self.qkv.outs))
            before_cache(
                *(x, norms[0], self.norms[0][1], self.qkv.arrays(), norms[2], self._head_eps()),
                *(cos.reshape(-1).numpy(), sin.reshape(-1).numpy(), self.heads, self.kv_heads),
                *(self._normed, projected.numpy()),
            )
            query, key, value = projected.view(1, -1, 1, self.head_size).split(
                (self.heads, self.kv_heads, self.kv_heads), dim=1
            )
            keys, values = cache.update(key, value, self.layer)
            after_cache(
                *(x, query.view(self.heads, -1).numpy(), keys[0].numpy(), values[0].numpy(), self.scale),
                *(self.out.arrays(), norms[1], self.norms[1][1], self.gate_up.arrays(), self.activation),
                *(self.down.arrays(), self._attended, self._normed, self._inner, y.numpy()),
            )
            for group in (self.qkv, self.out, self.gate_up, self.down):
                group.seen += 1
        return y.view(hidden.shape)

    @torch.no_grad()
    def agrees(self) -> bool:
        """Try the shortcut against the block on a few random tokens after a random cache.

        A score next to its threshold may fall on either side, so one token in three must agree.
        """
        from transformers import DynamicCache

        generator = torch.Generator().manual_seed(0)
        parameters = inspect.signature(self.usual).parameters
        name = "cache" if "cache" in parameters else "past_key_values"
        was_training = self.block.training
        counts = [(group, group.seen, group.total.clone()) for group in self._groups()]
        self.block.eval()
        try:
            for _ in range(3):
                hidden = torch.randn(1, 1, self.width, generator=generator)
                angle = torch.rand(1, 1, self.head_size // 2, generator=generator).repeat(1, 1, 2)
                past = torch.randn(2, 1, self.kv_heads, 3, self.head_size, generator=generator)
                results = []
                for run in (self.usual, self.forward):
                    cache = DynamicCache()
                    cache.update(past[0], past[1], self.layer)
                    output = run(hidden, position_embeddings=(angle.cos(), angle.sin()), **{name: cache})
                    output = output if isinstance(output, Tensor) else output[0]
                    results.append((output, cache.layers[self.layer].keys, cache.layers[self.layer].values))
                if all(_close(a, b) for a, b in zip(*results, strict=True)):
                    return True
            return False
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError):
            return False
        finally:
            self.block.train(was_training)
            for group, seen, total in counts:
                group.seen = seen
                group.total.copy_(total)

    def _groups(self) -> tuple[Siblings, ...]:
        return (self.qkv, self.out, self.gate_up, self.down)

    def _head_eps(self) -> float:
        return self.head_norms[0][1] if self.head_norms else 0.0

    def _norm_arrays(self) -> tuple[Any, Any, Any]:
        """Gains of the norms as they are now, and room for the kernels."""
        state = tuple(weight_state(next(norm.parameters())) for norm, _ in (*self.norms, *self.head_norms))
        if state != self._state:
            gains = [norm_gain(norm, self.width) for norm, _ in self.norms]
            heads = [norm_gain(norm, self.head_size) for norm, _ in self.head_norms]
            self._gains = (
                gains[0].numpy(),
                gains[1].numpy(),
                torch.stack(heads).numpy() if heads else np.empty((2, 0), np.float32),
            )
            self._attended = np.empty(self.out.inputs, np.float32)
            self._normed = np.empty(self.width, np.float32)
            self._inner = np.empty(sum(self.gate_up.outs), np.float32)
            self._state = state
        return self._gains

    def __getstate__(self) -> dict[str, Any]:
        """A copy finds its weights elsewhere."""
        return self.__dict__ | {"_state": ()}


class HeadLinear(nn.Module):
    """A large dense linear layer, such as a language model's head, whose single tokens take the row kernel.

    It stays dense and keeps its weight's layout, which an embedding may share.

    Parameters
    ----------
    original : nn.Linear
        The layer it stands for.
    """

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = original.weight, original.bias
        self.in_features, self.out_features = original.in_features, original.out_features
        self.training = original.training
        self._original = (original,)  # in a tuple: not a child

    @property
    def original(self) -> nn.Linear:
        """The layer this one stands for."""
        return self._original[0]

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        single = x.numel() == self.in_features and not torch.compiler.is_compiling() and not torch.is_grad_enabled()
        readable = self.weight.dtype in BITS and self.weight.is_contiguous() and x.device.type == "cpu"
        if not single or not readable:
            return functional.linear(x, self.weight, self.bias)
        from weightsmith.sparsify._wina.kernels.cpu import dense_rows

        y = torch.empty(self.out_features)
        weight = self.weight.detach().view(BITS[self.weight.dtype]).numpy()
        with lock:
            dense_rows(x.detach().reshape(-1).float().numpy(), weight, y.numpy(), torch.get_num_threads())
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], -1)


def _norms(module: nn.Module, width: int, at_most: int) -> tuple[tuple[nn.Module, float], ...]:
    """The root-mean-square norms of some width among a module's children, with their epsilon."""
    found = []
    for child in module.children():
        parameters = [p for p in child.parameters() if p.shape == (width,)]
        if isinstance(child, SparseLinear) or len(parameters) != 1 or len(list(child.parameters())) != 1:
            continue
        eps = getattr(child, "variance_epsilon", getattr(child, "eps", None))
        if eps is None:
            raise _OtherFormError
        found.append((child, float(eps)))
    if len(found) > at_most:
        raise _OtherFormError
    return tuple(found)


def _activation(mlp: nn.Module) -> int:
    """Which activation the module's only child without parameters is."""
    candidates = [child for child in mlp.children() if not isinstance(child, SparseLinear)]
    if len(candidates) != 1:
        raise _OtherFormError
    x = torch.linspace(-4, 4, 33)
    for kind, function in enumerate(ACTIVATIONS):
        if torch.allclose(candidates[0](x), function(x), atol=1e-6):
            return kind
    raise _OtherFormError


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= TOLERANCE * a.abs().max())
