"""Tiny random models of the architectures users bring, and one as a folder."""

from __future__ import annotations

import torch
import transformers as t
from safetensors.torch import save_file

from weightsmith import testing
from weightsmith.testing import tiny

__all__ = ["PLAIN", "TRANSFORMERS", "tiny", "write_tiny_llama"]

TRANSFORMERS = [name for name in testing.TRANSFORMERS if name not in testing.MIXTURES]
PLAIN = [*testing.PLAIN]


def write_tiny_llama(folder, rows, tokens):
    """Write a tied two-block Llama to ``folder/tiny`` and token ids to ``folder/inputs.safetensors``; return folder."""
    torch.manual_seed(0)
    config = t.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    t.LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    save_file({"input_ids": torch.randint(64, (rows, tokens))}, folder / "inputs.safetensors")
    return folder
