"""The parts of the vision-language model: a frozen encoder of images to tokens (B, N, W), a projector, an LM."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.errors import WeightsmithError
from weightsmith.core.models import device_of, evaluation_mode
from weightsmith.embedded import open_model
from weightsmith_kitchen.errors import ModelError
from weightsmith_kitchen.photos.backbones import ALIASES, LITE0, open_backbone
from weightsmith_kitchen.photos.preprocess import Preprocess

__all__ = [
    "PLACEHOLDER",
    "Checkpointing",
    "FeatureMap",
    "Prefixed",
    "Vision",
    "group_tokens",
    "new_projector",
    "open_parts",
    "open_vision",
    "with_lora",
]

PLACEHOLDER = "<ImageHere>"
"""Where the image is in a prompt."""


class FeatureMap(nn.Module):
    """The last feature map of a convolutional network as tokens, row by row.

    Parameters
    ----------
    backbone : nn.Module
        With ``extract_features``: images (B, 3, H, W) to a map (B, W, rows, columns).
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        """Tokens of images, each with mean 0 and variance 1, as the paper's encoder ends in a LayerNorm."""
        found = self.backbone.extract_features(images).flatten(2).transpose(1, 2)  # type: ignore[operator]
        normalized: Tensor = functional.layer_norm(found, found.shape[-1:])
        return normalized


@dataclass(frozen=True)
class Vision:
    """An encoder and what belongs to it.

    Attributes
    ----------
    name : str or None
        What :func:`open_vision` opens it by; None for a module of the user's own.
    module : nn.Module
        Images (B, 3, side, side) to tokens (B, N, W).
    preprocess : Preprocess
        How its inputs are made.
    tokens, width : int
        N and W.
    """

    name: str | None
    module: nn.Module
    preprocess: Preprocess
    tokens: int
    width: int


def open_vision(vision: str | nn.Module = LITE0, *, preprocess: Preprocess | None = None) -> Vision:
    """Open an encoder and count its tokens.

    Parameters
    ----------
    vision : str or nn.Module, default: "embedded:efficientnet-lite0"
        The embedded network (49 tokens of width 1280 from 224 pixels), or a module that returns tokens (B, N, W).
    preprocess : Preprocess, optional
        How inputs are made; by default as the network was trained.

    Raises
    ------
    ModelError
        If there is no such encoder, or the module does not return tokens.

    Examples
    --------
    >>> opened = open_vision("embedded:efficientnet-lite0")
    >>> opened.tokens, opened.width
    (49, 1280)
    """
    if isinstance(vision, nn.Module):
        name, module, chosen = None, vision, preprocess or Preprocess()
    else:
        name = ALIASES.get(vision.lower(), vision)
        if name != LITE0:
            raise ModelError("vision", found=vision, expected=f"{LITE0}, or a module that returns tokens (B, N, W)")
        opened = open_backbone(name)
        module, chosen = FeatureMap(opened.module), preprocess or opened.preprocess
    module.requires_grad_(False).eval()
    with torch.no_grad(), evaluation_mode(module):
        pixels = torch.zeros(1, 3, chosen.side, chosen.side, device=device_of(module))
        try:
            found = module(pixels)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"vision encoder fails on images of {chosen.side} pixels", found=error) from error
    if not isinstance(found, Tensor) or found.ndim != 3:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ModelError("output of the vision encoder", found=shape, expected="tokens of shape (B, N, W)")
    return Vision(name, module, chosen, found.shape[1], found.shape[2])


def open_parts(
    vision: str | nn.Module, lm: str | os.PathLike[str] | nn.Module, tokenizer: Any, preprocess: Preprocess | None
) -> tuple[Vision, Any, Any, str | None]:
    """The encoder, the language model, its tokenizer, and what the language model is opened by; checked.

    Raises
    ------
    ModelError
        If a part cannot be opened, or a module has no tokenizer.
    """
    opened, name = open_vision(vision, preprocess=preprocess), None
    if not isinstance(lm, nn.Module):
        name = str(lm)
        try:
            loaded = open_model(lm, dtype=torch.float32)
        except WeightsmithError as error:
            raise ModelError(f"language model {lm} cannot be opened", found=error) from error
        lm, tokenizer = loaded.model, tokenizer or loaded.tokenizer
    if tokenizer is None or not hasattr(lm, "get_input_embeddings") or not hasattr(lm, "generate"):
        raise ModelError("language model", found=type(lm).__name__, expected="a causal one, and its tokenizer")
    return opened, lm, tokenizer, name


def new_projector(vision: Vision, lm: Any, group: int, generator: torch.Generator | None) -> nn.Linear:
    """A linear layer from ``group`` tokens to an embedding, whose outputs are as long as embeddings of words.

    Raises
    ------
    ModelError
        If the group does not divide the number of tokens.
    """
    if group < 1 or vision.tokens % group:
        divisors = [number for number in range(1, vision.tokens + 1) if vision.tokens % number == 0]
        raise ModelError("group", found=group, expected=f"a divisor of {vision.tokens} tokens: {divisors}")
    words = lm.get_input_embeddings().weight
    projector = nn.Linear(group * vision.width, words.shape[1])
    with torch.no_grad():
        # Tokens have variance 1. PyTorch's own start makes prefixes four times as long as words, and learns less.
        spread = float(words.float().std()) / (group * vision.width) ** 0.5
        projector.weight.normal_(std=spread, generator=generator)
        projector.bias.zero_()
    return projector.to(words.device)


def with_lora(lm: Any, *, r: int, alpha: float, dropout: float, target_modules: Sequence[str]) -> Any:
    """The language model with LoRA of PEFT.

    Raises
    ------
    ModelError
        If it has LoRA already, or a target is no layer of it. The candidates are named.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(lm, PeftModel):
        raise ModelError("language model", found="a model with adapters", expected="one without")
    names = {name.rpartition(".")[2] for name, _ in lm.named_modules()}
    missing = [name for name in target_modules if name not in names]
    if missing:
        layers = {
            name.rpartition(".")[2]
            for name, module in lm.named_modules()
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        }
        raise ModelError(
            "target_modules", found=", ".join(missing), expected=f"layers of the model: {', '.join(sorted(layers))}"
        )
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(target_modules), task_type="CAUSAL_LM"
    )
    return get_peft_model(lm, config)


class Prefixed(nn.Module):
    """What training and folders know of the model: a language model whose inputs begin with an image's embeddings."""

    lm: Any
    tokenizer: Any
    projector: nn.Module
    number_head: nn.Module | None
    group: int
    max_length: int
    prompt: str
    preprocess: Preprocess
    names: dict[str, str | None]

    def token_ids(self, text: str) -> list[int]:
        """Tokens of a text, without special ones."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids) if text else []


class Checkpointing:
    """What `fit` asks of a model before it recomputes activations, answered by its language model."""

    lm: Any

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the language model can recompute activations in the backward pass."""
        return bool(getattr(self._base, "supports_gradient_checkpointing", False))

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether it does."""
        return bool(self._base.is_gradient_checkpointing)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Let the language model recompute activations."""
        self._base.gradient_checkpointing_enable(**options)

    def gradient_checkpointing_disable(self) -> None:
        """Let it keep them."""
        self._base.gradient_checkpointing_disable()

    @property
    def _base(self) -> Any:
        """The language model without the wrapper of PEFT."""
        return self.lm.get_base_model() if hasattr(self.lm, "peft_config") else self.lm


def group_tokens(tokens: Float[Tensor, "B N W"], group: int) -> Float[Tensor, "B M F"]:
    """Join consecutive tokens: (B, N, W) to (B, N / group, group * W).

    Raises
    ------
    ModelError
        If the tokens are not three-dimensional, or their number is no multiple of the group.

    Examples
    --------
    >>> group_tokens(torch.zeros(2, 1024, 8), 4).shape
    torch.Size([2, 256, 32])
    """
    if tokens.ndim != 3 or group < 1 or tokens.shape[1] % group:
        raise ModelError(
            "visual tokens", found=f"shape {tuple(tokens.shape)}, group {group}", expected="(B, N, W), N % group = 0"
        )
    count, length, width = tokens.shape
    return tokens.reshape(count, length // group, group * width)
