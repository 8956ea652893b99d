"""What a mask on the weights cannot do: norms over fewer features, attention of other heads, and depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.errors import UnsupportedModelError
from weightsmith.core.linalg import upcast
from weightsmith.core.models import Stack
from weightsmith.search._tanglenas.dimensions import Heads
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
        weights, active = state.joint(cut.dims), state.active(cut.dims)
        stops = sorted({sizes[place] for place in active})
        if centered:  # sums of squares around a mean nearby: their difference to it is small, and exact enough
            wide = wide - wide[..., : stops[0]].mean(-1, keepdim=True)
        segments = [wide[..., a:b] for a, b in zip([0, *stops], stops, strict=False)]
        squares = [each.norm(dim=-1, keepdim=True).square() for each in segments]
        sums = [each.sum(-1, keepdim=True) for each in segments] if centered else [wide.new_zeros(())]
        factors, shifts = [], []
        for number, stop in enumerate(stops):
            mean = _sum(sums[: number + 1]) / stop
            variance = _sum(squares[: number + 1]) / stop - mean.square()
            weight = _sum([weights[place] for place in active if sizes[place] == stop])
            factors.append(weight * (variance + epsilon).rsqrt())
            shifts.append(factors[-1] * mean)
        # the choices that contain a feature: fewer in later segments
        pieces = [
            torch.addcmul(-_sum(shifts[number:]), segment, _sum(factors[number:]))
            if centered
            else segment * _sum(factors[number:])
            for number, segment in enumerate(segments)
        ]
        normalized = torch.cat(pieces, -1)
        if stops[-1] < wide.shape[-1]:
            normalized = functional.pad(normalized, (0, wide.shape[-1] - stops[-1]))
        if centered:
            gain, bias = module.weight, module.bias
        else:  # whatever an RMS norm does with its weight, it does it to features of one
            ones = torch.ones(wide.shape[-1], dtype=wide.dtype, device=wide.device)
            gain, bias = plain(module, ones) * math.sqrt(1 + epsilon), None
        if bias is not None:
            bias = bias * state.cached((1, id(part)), lambda: part.mask(state, 1))
            return torch.addcmul(bias, normalized, gain).to(x.dtype)
        normalized = normalized if gain is None else normalized * gain
        return normalized.to(x.dtype)

    return forward


def _sum(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


class SplitAttention:
    """Attention whose heads are split anew by every choice, as an attention function of transformers.

    With ``h`` heads the features are ``h`` heads of equal size, of which a hidden size ``e`` keeps the first ``e / h``
    features each. One attention runs per number of heads. One choice alone is exact; in a mixture of hidden sizes the
    scores are those of mixed queries, each scaled by the head size of its own choice.

    Parameters
    ----------
    heads : Heads
        How the attention is split.
    state : ArchState
        The weights of the choices.
    """

    def __init__(self, heads: Heads, state: ArchState) -> None:
        self.heads, self.state = heads, state

    def _counts(self) -> list[tuple[int, Tensor | None]]:
        name = self.heads.heads
        if not name:
            return [(self.heads.count, None)]
        weights = self.state.joint((name,))
        return [(self.state.choices[name][place], weights[place]) for place in self.state.active((name,))]

    def _features(self, count: int, power: float) -> Tensor:
        """Per feature of a head: the weights of the hidden sizes that keep it, times a power of their head sizes."""
        name, width = self.heads.hidden, self.heads.width
        sizes = torch.tensor(self.state.choices[name], device=self.state.joint((name,)).device)
        kept = torch.arange(width // count, device=sizes.device) < sizes[:, None] // count
        return self.state.joint((name,)) @ (kept * (sizes[:, None] / width) ** power)

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

        _, own, _, size = query.shape
        scaling = size**-0.5 if scaling is None else scaling
        total: list[Tensor] = []
        for count, weight in self._counts():
            split = [_split(x, count) for x in (query, key, value)]
            if self.heads.hidden:  # keys have the mask of queries: both are multiplied
                both = self.state.cached(("queries", count), partial(self._features, count, -0.5))
                split[0] = split[0] * both.to(query.dtype)
            scale = scaling * math.sqrt(count / own)
            out, _ = sdpa_attention_forward(module, *split, attention_mask, dropout=dropout, scaling=scale, **others)
            if self.heads.hidden:
                kept = self.state.cached(("outputs", count), partial(self._features, count, 0.0))
                out = out * kept.to(out.dtype)
            out = out.flatten(2)
            total.append(out if weight is None else out * weight.to(out.dtype))
        return _sum(total).unflatten(-1, (own, size)), None


def _split(x: Tensor, count: int) -> Tensor:
    """The same features in another number of heads: [batch, heads, tokens, size]."""
    return x if x.shape[1] == count else x.transpose(1, 2).flatten(2).unflatten(-1, (count, -1)).transpose(1, 2)


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
