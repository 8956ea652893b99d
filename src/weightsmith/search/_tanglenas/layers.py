"""What a mask on the weights cannot do: norms over fewer features, attention of other heads, and depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.errors import UnsupportedModelError
from weightsmith.core.linalg import upcast
from weightsmith.core.models import Stack
from weightsmith.search._tanglenas.space import Heads
from weightsmith.search._tanglenas.superposition import ArchState, AxisCut, Part

__all__ = ["SplitAttention", "is_norm", "mix_depth", "prefix_norm"]


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes over its last axis, as layer norm and RMS norm of any library do."""
    kind = type(module).__name__
    return kind.endswith(("LayerNorm", "RMSNorm")) and hasattr(module, "weight")


def prefix_norm(module: Any, cut: AxisCut, part: Part, state: ArchState) -> Callable[[Tensor], Tensor]:
    """Return the forward pass of a norm whose every choice has the statistics of its own features.

    Parameters
    ----------
    module : nn.Module
        A layer norm, or an RMS norm of any library.
    cut, part : AxisCut, Part
        What the choices keep of its features, and the mask of that.
    state : ArchState
        The weights of the choices.
    """
    centered = isinstance(module, nn.LayerNorm)
    eps = getattr(module, "eps", None) or getattr(module, "variance_epsilon", None)
    sizes = cut.kept.sum(1).tolist()
    prefixes = torch.arange(cut.kept.shape[1]) < torch.tensor(sizes)[:, None]
    if not torch.equal(prefixes, cut.kept):
        raise UnsupportedModelError("a norm over features that are not the first", found=type(module).__name__)
    plain = type(module).forward

    def forward(x: Tensor) -> Tensor:
        wide = upcast(x)
        epsilon = torch.finfo(x.dtype).eps if eps is None else eps
        weights = state.joint(cut.dims)
        coefficients: list[tuple[int, Tensor, Tensor | None]] = []
        for place in state.active(cut.dims):
            own = wide[..., : sizes[place]]
            if centered:
                variance, mean = torch.var_mean(own, -1, correction=0, keepdim=True)
            else:
                variance, mean = own.square().mean(-1, keepdim=True), None
            factor = weights[place] * (variance + epsilon).rsqrt()
            coefficients.append((sizes[place], factor, None if mean is None else factor * mean))
        pieces, start = [], 0
        for stop in sorted(
            {size for size, *_ in coefficients}
        ):  # the choices that contain a feature: fewer, further on
            inside = [each for each in coefficients if each[0] >= stop]
            piece = wide[..., start:stop] * _sum([factor for _, factor, _ in inside])
            shifts = [shift for _, _, shift in inside if shift is not None]
            pieces.append(piece - _sum(shifts) if shifts else piece)
            start = stop
        normalized = functional.pad(torch.cat(pieces, -1), (0, wide.shape[-1] - start))
        if centered:
            gain, bias = module.weight, module.bias
        else:  # whatever an RMS norm does with its weight, it does it to features of one
            ones = torch.ones(wide.shape[-1], dtype=wide.dtype, device=wide.device)
            gain, bias = plain(module, ones) * math.sqrt(1 + epsilon), None
        normalized = normalized if gain is None else normalized * gain
        if bias is not None:
            normalized = normalized + bias * state.cached((1, id(part)), lambda: part.mask(state, 1))
        return normalized.to(x.dtype)

    return forward


def _sum(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


class SplitAttention:
    """Attention whose heads are split anew by every choice, as an attention function of transformers.

    Queries, keys and values of the hidden size ``e`` with ``h`` heads are the first ``e`` features in ``h`` heads of
    ``e / h``. One attention runs per number of heads; for several hidden sizes at once, heads are padded to the largest
    size, and their features mixed. One choice alone is exact. In a mixture the scores are those of mixed queries and
    keys, each query scaled by the head size of its own choice.

    Parameters
    ----------
    heads : Heads
        How the attention is split.
    state : ArchState
        The weights of the choices.
    """

    def __init__(self, heads: Heads, state: ArchState) -> None:
        self.heads, self.state = heads, state

    def _options(self, name: str, own: int) -> list[tuple[int, Tensor | float]]:
        if not name:
            return [(own, 1.0)]
        weights = self.state.joint((name,))
        return [(self.state.choices[name][place], weights[place]) for place in self.state.active((name,))]

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Run it, as transformers calls it."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        size = query.shape[-1]
        scaling = size**-0.5 if scaling is None else scaling
        flat = [each.transpose(1, 2).flatten(2) for each in (query, key, value)]
        widths = self._options(self.heads.hidden, self.heads.width)
        total: Tensor | float = 0.0
        for count, weight in self._options(self.heads.heads, self.heads.count):
            scales = [(width, share * math.sqrt(size * count / width)) for width, share in widths]
            split = [_split(x, count, each) for x, each in zip(flat, (scales, widths, widths), strict=True)]
            out, _ = sdpa_attention_forward(
                module, *split, attention_mask, dropout=dropout, scaling=scaling, **others
            )  # [batch, tokens, heads, size]
            joined = [out[..., : width // count].flatten(2) * share for width, share in widths]
            total = total + weight * _sum([functional.pad(x, (0, self.heads.width - x.shape[-1])) for x in joined])
        assert isinstance(total, Tensor)
        return total.view(*total.shape[:2], self.heads.count, -1), None


def _split(x: Tensor, count: int, widths: list[tuple[int, Any]]) -> Tensor:
    """The first features of every width in heads, mixed: [batch, heads, tokens, size]."""
    size = max(width for width, _ in widths) // count
    parts = []
    for width, share in widths:
        heads = x[..., :width].unflatten(-1, (count, width // count)) * share
        parts.append(functional.pad(heads, (0, size - width // count)))
    return _sum(parts).transpose(1, 2)


def mix_depth(stack: Stack, dim: str, state: ArchState) -> list[Any]:
    """Make the last block of a stack return the mixture of the outputs at all depths; returns the hooks."""
    depths, last = state.choices[dim], len(stack)
    held: dict[int, Tensor] = {}

    def hook(depth: int) -> Callable[[nn.Module, Any, Any], Any]:
        def after(module: nn.Module, args: Any, output: Any) -> Any:
            held[depth] = output if isinstance(output, Tensor) else output[0]
            if depth < last:
                return output
            weights = state.joint((dim,))
            mixed = _sum([weights[place] * held[depths[place]] for place in state.active((dim,))])
            mixed = mixed.to(held[depth].dtype)
            held.clear()
            return mixed if isinstance(output, Tensor) else (mixed, *output[1:])

        return after

    return [stack.blocks[depth - 1].register_forward_hook(hook(depth)) for depth in depths]
