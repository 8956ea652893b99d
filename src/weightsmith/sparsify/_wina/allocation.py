"""Greedy allocation of sparsity within a block (TEAL's algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from weightsmith.core.errors import UnsupportedModelError
from weightsmith.core.models import Block, Layer, TokenMasks
from weightsmith.core.processes import all_reduce_sum
from weightsmith.sparsify._wina.selection import dropped, prefix_mask

__all__ = ["greedy"]

TAIL = 0.25
"""The error is measured on the last quarter of the tokens: the first ones have little context."""


@torch.no_grad()
def greedy(
    block: Block,
    layers: Sequence[Layer],
    limits: Callable[[str, float], Tensor],
    *,
    sparsity: float,
    step: float,
    prefill: float,
) -> dict[str, float]:
    r"""Distribute the sparsity of a block so that its output changes least.

    Start with dense layers. Each step raises the sparsity of the one layer that then changes the output of the block
    least, by :math:`\delta_p = \text{step} \cdot \bar n / n_p` for a layer with :math:`n_p` weights (mean
    :math:`\bar n`), so that every step removes equally many weights. The result is the visited allocation that is
    nearest to the target.

    Parameters
    ----------
    block : Block
        With its inputs in the dense model.
    layers : sequence of Layer
        The layers to make sparse.
    limits : callable
        Returns the limits of a layer's inputs at a sparsity.
    sparsity : float
        The target, a fraction of the weights of the block.
    step : float
        Mean step in sparsity.
    prefill : float
        The last fraction of the tokens of a sequence, which is sparse.

    Returns
    -------
    dict of str to float
        Sparsity by layer name, each in [0, 1].
    """
    numel = {layer.name: layer.weight_OI.numel() for layer in layers}
    mean = sum(numel.values()) / len(numel)
    masks = _Masks()
    dense = _outputs(block, masks)
    now = dict.fromkeys(numel, 0.0)
    passed = [now]
    while _effective(now, numel) < sparsity:
        trials = [now | {name: min(1.0, now[name] + step * mean / numel[name])} for name in numel if now[name] < 1.0]
        errors = []
        for trial in trials:
            shares = {name: limits(name, share) for name, share in trial.items() if share}
            with _sparse(layers, shares, prefill, masks):
                errors.append(_error(dense, _outputs(block, masks)))
        now = trials[errors.index(min(errors))]
        passed.append(now)
    return min(passed, key=lambda shares: abs(_effective(shares, numel) - sparsity))


def _effective(shares: Mapping[str, float], numel: Mapping[str, int]) -> float:
    """Fraction of all weights that is skipped.

    >>> _effective({"a": 1.0, "b": 0.0}, {"a": 1, "b": 3})
    0.25
    """
    return sum(numel[name] * share for name, share in shares.items()) / sum(numel.values())


class _Masks:
    """The masks of the batch that runs now: True for real tokens."""

    def __init__(self) -> None:
        self.now = TokenMasks()

    def of(self, x: Tensor) -> Bool[Tensor, "sequences tokens"]:
        """The mask of a tensor ``[sequences, ..., tokens, channels]``; all are real where the model has none."""
        mask = self.now.of(x)
        if mask is None or mask.shape != x.shape[:-1]:
            return torch.ones(1, x.shape[-2], dtype=torch.bool, device=x.device)
        return mask


def _outputs(block: Block, masks: _Masks) -> list[Tensor]:
    outputs = []
    for args, kwargs, masks.now in block.inputs:
        output: Any = block.run(args, kwargs)
        output = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(output, Tensor):
            raise UnsupportedModelError(
                f"block {block.name!r} returns {type(output).__name__}",
                expected="a tensor, or a tuple that starts with one",
                do="Take allocation='uniform'.",
            )
        outputs.append(output if output.ndim <= 2 else _last(output, masks.of(output)))
    return outputs


def _last(output: Tensor, real_SN: Bool[Tensor, "sequences tokens"]) -> Tensor:
    """The last real tokens of each sequence; the others among them are zero.

    >>> _last(torch.ones(1, 8, 1), torch.tensor([[True] * 6 + [False] * 2])).flatten()
    tensor([1.])
    """
    count_S1 = real_SN.sum(1, keepdim=True)
    last_SN = real_SN & (real_SN.cumsum(1) > count_S1 - (TAIL * count_S1).long().clamp(min=1))
    columns = last_SN.any(0)
    return output[..., columns, :].where(last_SN[:, columns, None], 0)


def _error(dense: Sequence[Tensor], sparse: Sequence[Tensor]) -> float:
    """Mean over sequences and channels of the norm, over tokens, of the difference; over all processes."""
    norms = [
        torch.linalg.vector_norm((a - b).float(), dim=-2 if a.ndim > 1 else -1).mean()
        for a, b in zip(dense, sparse, strict=True)
    ]
    total = torch.stack([torch.stack(norms).double().sum(), torch.tensor(float(len(norms)), device=norms[0].device)])
    all_reduce_sum(total)
    return float(total[0] / total[1])


@contextmanager
def _sparse(layers: Sequence[Layer], limits: Mapping[str, Tensor], prefill: float, masks: _Masks) -> Iterator[None]:
    """Mask the layers' inputs while the context lasts."""

    def hook(limit: Tensor) -> Callable[..., tuple[tuple[Tensor], dict[str, Any]]]:
        def mask(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Tensor], dict[str, Any]]:
            (x,) = (*args, *kwargs.values())
            drop = dropped(x, limit)
            if x.ndim > 2:
                drop = drop & ~prefix_mask(masks.of(x), prefill).unsqueeze(-1)
            return (x.masked_fill(drop, 0),), {}

        return mask

    hooks = [
        layer.module.register_forward_pre_hook(hook(limits[layer.name]), with_kwargs=True)
        for layer in layers
        if layer.name in limits
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
