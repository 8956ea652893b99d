"""Tiny random models of the architectures users bring, each with a batch."""

from __future__ import annotations

import torch
import transformers as t
from safetensors.torch import save_file
from torch import nn

TRANSFORMERS = ["llama", "qwen3", "gemma3", "gpt2", "opt", "bert", "t5", "vit"]
PLAIN = ["cnn", "mlp"]
TOKENS = 40


def tiny(name, layers=2):
    """Return a model in evaluation mode and a batch of eight sequences or images, the last one padded."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4}
    gqa = small | {"num_key_value_heads": 2, "vocab_size": 64, "head_dim": 8, "pad_token_id": 0}
    ids = {"input_ids": torch.randint(1, 60, (8, TOKENS), generator=torch.Generator().manual_seed(0))}
    ids["attention_mask"] = (torch.arange(TOKENS) < torch.tensor([*[TOKENS] * 7, TOKENS - 9])[:, None]).long()
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    if name == "llama":
        model, batch = t.LlamaForCausalLM(t.LlamaConfig(**gqa)), ids
    elif name == "qwen3":
        model, batch = t.Qwen3ForCausalLM(t.Qwen3Config(**gqa)), ids
    elif name == "gemma3":
        kinds = [["sliding_attention", "full_attention"][i % 2] for i in range(layers)]
        config = t.Gemma3TextConfig(**gqa, sliding_window=8, layer_types=kinds)
        model, batch = t.Gemma3ForCausalLM(config), ids
    elif name == "gpt2":
        config = t.GPT2Config(
            n_embd=32, n_layer=layers, n_head=4, vocab_size=64, n_positions=64, bos_token_id=1, eos_token_id=2
        )
        model, batch = t.GPT2LMHeadModel(config), ids
    elif name == "opt":
        config = t.OPTConfig(
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            vocab_size=64,
            word_embed_proj_dim=32,
        )
        model, batch = t.OPTForCausalLM(config), ids
    elif name == "bert":
        model, batch = t.BertForSequenceClassification(t.BertConfig(**small, vocab_size=64)), ids
    elif name == "t5":
        config = t.T5Config(
            d_model=32, d_ff=64, num_layers=layers, num_heads=4, d_kv=8, vocab_size=64, decoder_start_token_id=0
        )
        model, batch = t.T5ForConditionalGeneration(config), ids | {"decoder_input_ids": ids["input_ids"][:, :20]}
    elif name == "vit":
        config = t.ViTConfig(**small, image_size=32, patch_size=4)
        model, batch = t.ViTForImageClassification(config), {"pixel_values": images}
    elif name == "cnn":
        body = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)]
        model, batch = nn.Sequential(*body, nn.Flatten(), nn.Linear(8 * 15 * 15, 4)), images
    else:
        model, batch = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)), torch.rand(300, 12)
    return model.eval(), batch


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
