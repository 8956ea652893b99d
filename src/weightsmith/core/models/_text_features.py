"""Vectors of texts: hidden states of a language model, averaged over the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.data import call, context_length
from weightsmith.core.models._layers import evaluation_mode

__all__ = ["text_features"]


@torch.no_grad()
def text_features(
    texts: Sequence[str], model: nn.Module, tokenizer: Any, *, batch_size: int = 32
) -> Float[Tensor, "N F"]:
    """Average a model's last hidden states over the tokens of each text.

    Parameters
    ----------
    texts : sequence of str
        None of them empty; what is longer than the model's context is cut off.
    model : nn.Module
        A Hugging Face model that returns hidden states; stays as it is.
    tokenizer : object
        Its tokenizer.
    batch_size : int, default: 32
        Texts at once.

    Returns
    -------
    Tensor
        Float32, on the CPU, in the order of the texts.

    Examples
    --------
    >>> from weightsmith.embedded import load
    >>> text_features(["an apple", "a lorry"], *load("minilm")).shape
    torch.Size([2, 384])
    """
    device = next(model.parameters()).device
    context = context_length(model)
    length = None if context is None else min(context, tokenizer.model_max_length)
    found = []
    with evaluation_mode(model):
        for start in range(0, len(texts), batch_size):
            # one by one where a tokenizer cannot pad
            group = list(texts[start : start + batch_size])
            for part in [group] if tokenizer.pad_token is not None else [[text] for text in group]:
                options = {"padding": len(part) > 1, "truncation": True, "max_length": length}
                inputs = tokenizer(part, **options, return_tensors="pt").to(device)
                hidden_NLF = call(model, {**inputs, "output_hidden_states": True}).hidden_states[-1].float()
                real_NL1 = inputs["attention_mask"][..., None]
                found.append((hidden_NLF * real_NL1).sum(1) / real_NL1.sum(1))
    return torch.cat(found).cpu()
