"""A byte-level language model that several claims train from scratch in seconds, and the texts it reads.

170 thousand parameters: 3 pre-norm blocks of width 64 with 4 heads and biases, context 64, the head tied to the
embedding (the OPT architecture with GELU, whose query, key and value are layers of their own). It learns the
documentation of the Python language, then adapts to Python source.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import OPTConfig, OPTForCausalLM

from weightsmith.core.data import token_windows
from weightsmith.core.models import evaluation_mode
from weightsmith.core.training import fit
from weightsmith.embedded import text as embedded_text

__all__ = ["BATCH", "CONTEXT", "LAYERS", "byte_model", "byte_text", "nll", "pretrained", "windows"]

CONTEXT = 64
"""Bytes the model sees."""

BATCH = 16
"""Windows an optimizer step."""

LAYERS = "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"
"""Names of the six matrices of a block."""

Part = Literal["documentation", "documentation held out", "source", "source held out"]
HELD_OUT = 60_000


def byte_model(seed: int = 0, *, width: int = 64, blocks: int = 3) -> nn.Module:
    """Build the model with random weights.

    Examples
    --------
    >>> sum(p.numel() for p in byte_model().parameters())
    170688
    """
    config = OPTConfig(
        vocab_size=256,
        hidden_size=width,
        word_embed_proj_dim=width,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        ffn_dim=4 * width,
        max_position_embeddings=CONTEXT,
        activation_function="gelu",
        dropout=0.0,
        init_std=0.08,  # the usual 0.02 is for widths near 1000
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = OPTForCausalLM(config)
    return model


def byte_text(part: Part) -> Int[Tensor, "bytes"]:
    """Return a text as byte values; the parts held out are of other topics and modules.

    Examples
    --------
    >>> bytes(byte_text("source")[:14].tolist())
    b'# Author: Stev'
    """
    if part.startswith("documentation"):
        data = (embedded_text("calibration") + embedded_text("evaluation")).encode()
        data = data[-HELD_OUT:] if part.endswith("held out") else data[:-HELD_OUT]
    else:
        data = embedded_text("source-held-out" if part.endswith("held out") else "source").encode()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def windows(ids: Int[Tensor, "bytes"], steps: int, seed: int) -> list[dict[str, Tensor]]:
    """Draw the windows that ``steps`` optimizer steps of ``BATCH`` windows read, as samples for ``fit``."""
    generator = torch.Generator().manual_seed(seed)
    (batch,) = token_windows(ids, length=CONTEXT, count=steps * BATCH, batch_size=steps * BATCH, generator=generator)
    return [{"input_ids": window, "labels": window} for window in batch["input_ids"]]


@torch.no_grad()
def nll(model: nn.Module, ids: Int[Tensor, "bytes"]) -> float:
    """Mean negative log-likelihood of a text in nats per byte, in windows that share no byte."""
    rows = ids[: len(ids) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    total = 0.0
    with evaluation_mode(model):
        for chunk in rows.split(256):
            logits = model(input_ids=chunk).logits[:, :-1]
            total += functional.cross_entropy(logits.flatten(0, 1), chunk[:, 1:].flatten(), reduction="sum").item()
    return total / rows[:, 1:].numel()


def pretrained(seed: int = 0, *, steps: int = 500) -> nn.Module:
    """Train the model on the documentation: AdamW at 3e-3, 5 % warm-up, cosine."""
    model = byte_model(seed)
    samples = windows(byte_text("documentation"), steps, seed)
    fit(model, samples, learning_rate=3e-3, scheduler="cosine", warmup=0.05, batch_size=BATCH, seed=seed)
    return model
