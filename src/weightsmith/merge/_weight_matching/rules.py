"""What each operation does to axes: one small function an operation of ATen.

A rule is called as ``rule(tracer, out, *args, **kwargs)`` with the operation's own arguments, unifies or fixes axes of
its inputs and gives its results theirs. It returns ``NotImplemented`` where it does not know the case; then, as for an
operation without a rule, every axis involved is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from weightsmith.merge._weight_matching import arithmetic, shapes
from weightsmith.merge._weight_matching.steps import Rule

__all__ = ["rule_of"]


def rule_of(func: Any) -> Rule | None:
    """The rule of an ATen operation; None where there is none."""
    name = func.overloadpacket.__name__
    rule = _RULES.get(name) or _RULES.get(name.removesuffix("_"))
    if rule is None and torch.Tag.pointwise in func.tags and torch.Tag.nondeterministic_seeded not in func.tags:
        return arithmetic.pointwise
    return rule


def _table(rules: Mapping[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in rules.items() for name in names.split()}


_RULES: dict[str, Rule] = _table(
    {
        arithmetic.pointwise: "where masked_fill copy_ addcmul addcdiv lerp _prelu_kernel",
        arithmetic.same: "alias detach clone contiguous _to_copy lift_fresh lift _softmax _log_softmax _safe_softmax "
        "native_dropout _conj",
        arithmetic.constant: "zeros ones full empty scalar_tensor zeros_like ones_like full_like empty_like new_zeros "
        "new_ones new_full new_empty fill zero",
        arithmetic.nothing: "_local_scalar_dense is_same_size sym_size",
        arithmetic.mm: "mm bmm",
        arithmetic.addmm: "addmm baddbmm",
        arithmetic.grouped_mm: "_grouped_mm",
        arithmetic.mv: "mv dot",
        arithmetic.reduce: "sum mean amax amin logsumexp any all prod",
        arithmetic.norm: "linalg_vector_norm norm",
        arithmetic.variance: "var std var_mean std_mean",
        arithmetic.extremum: "max min",
        arithmetic.number_of: "argmax argmin",
        arithmetic.convolution: "convolution",
        arithmetic.layer_norm: "native_layer_norm _fused_rms_norm",
        arithmetic.batch_norm: "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
        "cudnn_batch_norm _batch_norm_with_update",
        arithmetic.group_norm: "native_group_norm",
        shapes.view: "view _unsafe_view reshape _reshape_alias",
        shapes.permute: "permute",
        shapes.transpose: "transpose t",
        shapes.squeeze: "squeeze",
        shapes.unsqueeze: "unsqueeze",
        shapes.expand: "expand",
        shapes.repeat: "repeat",
        shapes.slice_: "slice",
        shapes.select: "select",
        shapes.split: "split split_with_sizes unsafe_split unsafe_split_with_sizes",
        shapes.unbind: "unbind",
        shapes.cat: "cat",
        shapes.stack: "stack",
        shapes.pad: "constant_pad_nd",
        shapes.as_strided: "as_strided",
        shapes.channel_shuffle: "channel_shuffle native_channel_shuffle",
        shapes.spatial(
            1
        ): "avg_pool1d max_pool1d adaptive_avg_pool1d upsample_nearest1d upsample_linear1d reflection_pad1d "
        "replication_pad1d",
        shapes.spatial(
            2
        ): "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d "
        "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
        "reflection_pad2d replication_pad2d",
        shapes.spatial(
            3
        ): "max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d "
        "upsample_nearest3d upsample_trilinear3d reflection_pad3d replication_pad3d",
        shapes.ordered(0): "cumsum cumprod logcumsumexp sort argsort flip",
        shapes.ordered(1): "roll topk",
        shapes.triangle: "tril triu",
        shapes.embedding: "embedding",
        shapes.index: "index",
        shapes.index_select: "index_select",
        shapes.gather: "gather",
        shapes.unfold: "unfold",
    }
)
