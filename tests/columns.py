"""Layers that share an input, as the sparse kernels take them, and the product they must give."""

from __future__ import annotations

import torch


def group_case(inputs: int, outs: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(inputs)
    weights = torch.randn(inputs * sum(outs), generator=generator).to(dtype)
    return torch.randn(inputs, generator=generator), weights


def expected(x: torch.Tensor, weights: torch.Tensor, limits: torch.Tensor, outs: tuple[int, ...]) -> torch.Tensor:
    start, parts = 0, []
    for limit, out in zip(limits, outs, strict=True):
        weight_IO = weights[start : start + len(x) * out].view(len(x), out).double()
        parts.append(x.double().masked_fill(x.abs() <= limit, 0) @ weight_IO)
        start += len(x) * out
    return torch.cat(parts)
