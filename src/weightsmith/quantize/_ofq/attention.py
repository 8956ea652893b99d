r"""Self-attention on fake-quantized queries, keys, values and probabilities, and query-key reparameterization.

With the joint weight :math:`A_h = W_{q,h}^\top W_{k,h}` of head h and quantized inputs :math:`\hat x`, the logits are

.. math::
    \ell_{ij} = \hat x_i^\top \big(Q(A_h)\,\hat x_j\big) / \sqrt d + b_{q,h}^\top W_{k,h}\,\hat x_j / \sqrt d

Terms that are constant over j vanish in the softmax. The reference leaves out the biases altogether.

Legend: ``S`` sequences, ``H`` heads, ``N`` tokens, ``C`` features, ``D`` size of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from weightsmith.core.errors import UnsupportedModelError
from weightsmith.core.linalg import upcast
from weightsmith.quantize._ofq.activations import ActivationQuantizer, Granularity
from weightsmith.quantize._ofq.weights import StatsQ

__all__ = ["SUPPORTED", "QuantizedAttention", "attentions", "refusal"]

SUPPORTED = ("ViTAttention", "DeiTAttention", "BertSelfAttention", "RobertaSelfAttention")
"""Attention of transformers that has absolute positions, as many keys as queries, and no cache."""

NAMES = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))


class QuantizedAttention(nn.Module):
    """Self-attention whose products have fake-quantized factors.

    Parameters
    ----------
    old : nn.Module
        The attention of a ViT, DeiT, BERT or RoBERTa. Its modules become this one's, under their own names.
    bits : int
        Of activations.
    joint_bits : int or None
        Of the joint weight of queries and keys; None keeps them apart.
    granularity : {"tensor", "token"}
        Of the activations' steps.

    Raises
    ------
    UnsupportedModelError
        If the attention is of another kind.
    """

    def __init__(self, old: nn.Module, bits: int, joint_bits: int | None, granularity: Granularity) -> None:
        super().__init__()
        if reason := refusal(old):
            raise UnsupportedModelError("attention that cannot be quantized", found=reason, expected=list(SUPPORTED))
        module: Any = old
        self._modules.update(old._modules)
        self.training = old.training
        self.config = module.config
        self.names = next(names for names in NAMES if hasattr(old, names[0]))
        self.heads = int(module.num_attention_heads)
        self.scaling = float(module.scaling)
        # ViT has a probability, BERT a module
        self.drop = getattr(module, "attention_dropout", None)
        query = getattr(old, self.names[0])
        inner, features = query.weight.shape
        self.joint = None if joint_bits is None else StatsQ(joint_bits)
        self.annealed: Callable[[Tensor], Tensor] | None = None

        def quantizer(*shape: int) -> ActivationQuantizer:
            return ActivationQuantizer(bits, shape, granularity)

        self.quantizers = nn.ModuleDict({"input": quantizer(features), "value": quantizer(inner)})
        if self.joint is None:
            self.quantizers.update({"query": quantizer(inner), "key": quantizer(inner)})
        else:
            self.joint.dtype = query.weight.dtype
            self.quantizers["key"] = quantizer(self.heads, 1, features)
        self.quantizers["probabilities"] = quantizer()

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, cache: Any = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the output and the probabilities."""
        if cache is not None:
            raise UnsupportedModelError("attention with fake-quantized factors", found="a cache", do="Use no cache.")
        to_query, to_key, to_value = (getattr(self, name) for name in self.names)
        x = self.quantizers["input"](hidden_states)
        value = self._split(self.quantizers["value"](to_value(x)))
        if self.joint is None:
            query, key = (
                self._split(self.quantizers[name](project(x)))
                for name, project in (("query", to_query), ("key", to_key))
            )
            logits = query @ key.mT
        else:
            query_HDC, key_HDC = (project.weight.unflatten(0, (self.heads, -1)) for project in (to_query, to_key))
            joint = query_HDC.mT @ key_HDC
            if self.annealed is not None and joint.requires_grad:
                joint.register_hook(partial(torch.mul, self.annealed(joint.detach().flatten(0, 1)).view_as(joint)))
            joint = self.joint(joint.flatten(0, 1)).view_as(joint)
            key = self.quantizers["key"](x.unsqueeze(1) @ joint.mT.to(x.dtype))  # [S, H, N, C]
            logits = x.unsqueeze(1) @ key.mT
            if to_query.bias is not None:
                bias_HC = to_query.bias.view(self.heads, 1, -1) @ key_HDC
                logits = logits + (x.unsqueeze(1) @ bias_HC.mT.to(x.dtype)).mT
        logits = logits * self.scaling
        if attention_mask is not None:
            if attention_mask.dtype == torch.bool:
                logits = logits.masked_fill(~attention_mask, torch.finfo(logits.dtype).min)
            else:
                logits = logits + attention_mask
        chances = self.quantizers["probabilities"](upcast(logits).softmax(-1).to(value.dtype))
        output = (self._dropped(chances) @ value).transpose(1, 2).flatten(2)
        return (self.get_submodule("o_proj")(output) if "o_proj" in self._modules else output), chances

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _dropped(self, chances: Tensor) -> Tensor:
        if self.drop is None:
            return cast(Tensor, self.get_submodule("dropout")(chances))
        return nn.functional.dropout(chances, self.drop, self.training)


def attentions(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every attention of a model with its path: modules that project a query."""
    projections = {"q_proj", "query", "c_attn", "q", "q_lin", "qkv"}
    for name, module in model.named_modules():
        if "attention" in type(module).__name__.lower() and projections & {*module._modules}:
            yield name, module


def refusal(module: nn.Module) -> str | None:
    """Say why a module's queries and keys cannot be reparameterized; None if they can."""
    kind, config = type(module).__name__, getattr(module, "config", None)
    if {"q_norm", "k_norm", "query_norm", "key_norm"} & {*module._modules}:
        return f"{kind} with normalized queries and keys (qk-norm)"
    query, key = (
        next((m for n in names if isinstance(m := getattr(module, n, None), nn.Linear)), None)
        for names in (("q_proj", "query"), ("k_proj", "key"))
    )
    if query is not None and key is not None and query.weight.shape != key.weight.shape:
        return f"{kind} with fewer keys than queries (grouped-query attention)"
    arguments = inspect.signature(module.forward).parameters
    if "position_embeddings" in arguments or hasattr(module, "rotary_emb"):
        return f"{kind} with rotary positions (RoPE)"
    if kind not in SUPPORTED:
        return f"{kind}, which is not known to be self-attention without a cache and relative positions"
    if getattr(config, "is_decoder", False):
        return f"{kind} of a decoder, with a cache"
    return None
