"""Tiny random models of the architectures that users bring, each with inputs and training samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError

__all__ = ["ARCHITECTURES", "MIXTURES", "PLAIN", "REGRESSIONS", "TRANSFORMERS", "samples", "tiny"]

TRANSFORMERS = ("llama", "qwen3", "gemma3", "gpt2", "opt", "bert", "t5", "vit", "mixtral", "qwen3_moe")
"""Hugging Face architectures: with grouped queries, tied and untied heads, Conv1D, encoders, fused experts."""

MIXTURES = ("mixtral", "qwen3_moe")
"""Those with experts."""

PLAIN = ("cnn", "mlp")
"""Plain PyTorch: a convolutional network with batch normalization, and a perceptron."""

ARCHITECTURES = (*TRANSFORMERS, *PLAIN)

REGRESSIONS = ("mlp_regression", "cnn_regression", "bert_regression", "vit_regression")
"""The same networks with one real number as output, for methods on these; not among :data:`ARCHITECTURES`."""

TOKENS, WORDS = 40, 64
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
DECODER = SMALL | {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": WORDS, "pad_token_id": 0}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
IDS = {"bos_token_id": 1, "eos_token_id": 2}


def tiny(name: str, layers: int = 2) -> tuple[Any, Any]:
    """Return a model in evaluation mode, and a batch of eight sequences or images, the last sequence padded.

    Nothing in it is drawn at random while it runs: dropout is 0.

    Parameters
    ----------
    name : str
        One of :data:`TRANSFORMERS`, :data:`PLAIN` or :data:`REGRESSIONS`.
    layers : int, default: 2
        Blocks of a transformer.

    Raises
    ------
    HyperparameterError
        If there is no such architecture.

    Examples
    --------
    >>> model, batch = tiny("llama")
    >>> model(**batch).logits.shape
    torch.Size([8, 40, 64])
    """
    check_names([name])
    torch.manual_seed(0)
    family, outputs = family_of(name), 1 if name in REGRESSIONS else 4
    if family == "cnn":
        body = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)]
        return nn.Sequential(*body, nn.Flatten(), nn.Linear(8 * 15 * 15, outputs)).eval(), _images()
    if family == "mlp":
        return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, outputs)).eval(), torch.rand(300, 12)
    return _transformer(family, layers, {"num_labels": 1} if name in REGRESSIONS else {}).eval(), _inputs(family)


def check_names(models: Sequence[str], refuses: Sequence[str] = ()) -> None:
    """Refuse architectures that do not exist, and no architecture at all: nothing would be checked.

    Raises
    ------
    HyperparameterError
        If there are some, or ``models`` is empty.

    Examples
    --------
    >>> check_names(["llama"], refuses=["mpl"])
    Traceback (most recent call last):
    weightsmith.core.errors.HyperparameterError: architecture: found mpl, expected llama or qwen3 or ...
    """
    known = (*ARCHITECTURES, *REGRESSIONS)
    if not models:
        raise HyperparameterError("models", found="none", expected="one architecture or more")
    for name in (*models, *refuses):
        if name not in known:
            raise HyperparameterError("architecture", found=name, expected=" or ".join(known))


def family_of(name: str) -> str:
    """Return the architecture without what its outputs are.

    Examples
    --------
    >>> family_of("bert_regression"), family_of("bert")
    ('bert', 'bert')
    """
    return name.removesuffix("_regression") if name in REGRESSIONS else name


def samples(name: str, count: int = 16) -> list[Any]:
    """Return training samples for :func:`tiny`'s model of the same name: mappings with ``labels``, or pairs.

    Examples
    --------
    >>> samples("vit")[1]["labels"], samples("llama")[0]["labels"].shape
    (tensor(1), torch.Size([12]))
    """
    family, regression = family_of(name), name in REGRESSIONS
    if family in PLAIN:
        inputs = _images() if family == "cnn" else torch.rand(8, 12, generator=torch.Generator().manual_seed(0))
        labels = [torch.tensor([n / 8]) if regression else torch.tensor(n % 4) for n in range(count)]
        return [(inputs[n % 8], label) for n, label in enumerate(labels)]
    batch = {key: value if key == "pixel_values" else value[:, :12] for key, value in _inputs(family).items()}
    rows = [{key: value[n % 8] for key, value in batch.items() if key != "decoder_input_ids"} for n in range(count)]
    if regression:
        return [row | {"labels": torch.tensor(n / 8)} for n, row in enumerate(rows)]
    classifies = name in ("bert", "vit")
    return [row | {"labels": torch.tensor(n % 2) if classifies else row["input_ids"]} for n, row in enumerate(rows)]


def _images() -> Tensor:
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _inputs(name: str) -> dict[str, Tensor]:
    if name == "vit":
        return {"pixel_values": _images()}
    ids = torch.randint(3, WORDS, (8, TOKENS), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(TOKENS) < torch.tensor([*[TOKENS] * 7, TOKENS - 9])[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    return batch | {"decoder_input_ids": ids[:, :20]} if name == "t5" else batch


def _transformer(name: str, layers: int, head: dict[str, int]) -> nn.Module:
    import transformers as t

    depth = {"num_hidden_layers": layers}
    if name == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**DECODER, **depth, **IDS))
    if name == "qwen3":
        return t.Qwen3ForCausalLM(t.Qwen3Config(**DECODER, **depth, **IDS, tie_word_embeddings=True))
    if name == "gemma3":
        kinds = [["sliding_attention", "full_attention"][i % 2] for i in range(layers)]
        return t.Gemma3ForCausalLM(t.Gemma3TextConfig(**DECODER, **depth, sliding_window=8, layer_types=kinds))
    if name == "gpt2":
        return t.GPT2LMHeadModel(
            t.GPT2Config(
                n_embd=32,
                n_layer=layers,
                n_head=4,
                vocab_size=WORDS,
                n_positions=64,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **IDS,
            )
        )
    if name == "opt":
        return t.OPTForCausalLM(
            t.OPTConfig(
                hidden_size=32,
                ffn_dim=64,
                num_attention_heads=4,
                vocab_size=WORDS,
                word_embed_proj_dim=32,
                dropout=0.0,
                **depth,
            )
        )
    if name == "bert":
        return t.BertForSequenceClassification(t.BertConfig(**SMALL, **depth, **STILL, **head, vocab_size=WORDS))
    if name == "t5":
        config = t.T5Config(
            d_model=32,
            d_ff=64,
            num_layers=layers,
            num_heads=4,
            d_kv=8,
            vocab_size=WORDS,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
        return t.T5ForConditionalGeneration(config)
    if name == "vit":
        return t.ViTForImageClassification(t.ViTConfig(**SMALL, **depth, **head, image_size=32, patch_size=4))
    experts = {"num_experts_per_tok": 2, "tie_word_embeddings": False}
    if name == "mixtral":
        return t.MixtralForCausalLM(t.MixtralConfig(**DECODER, **depth, **IDS, **experts, num_local_experts=4))
    return t.Qwen3MoeForCausalLM(
        t.Qwen3MoeConfig(**DECODER, **depth, **IDS, **experts, num_experts=4, moe_intermediate_size=32)
    )
