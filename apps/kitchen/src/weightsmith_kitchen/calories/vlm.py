"""A causal language model that reads an image as a prefix of visual tokens: frozen parts, a projector and LoRA.

CaLoRAify (Yao et al., 2024, arXiv:2412.09936). Every ``group`` consecutive visual tokens are joined into one vector, a
linear projector maps it to the width of the language model, and it takes the place of ``<ImageHere>`` in the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.io import atomic_output
from weightsmith_kitchen.errors import ModelError

__all__ = ["PLACEHOLDER", "VisionPrefixLM", "group_tokens"]

PLACEHOLDER = "<ImageHere>"
IGNORED = -100


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


class VisionPrefixLM(nn.Module):
    """Image and question to text.

    Parameters
    ----------
    vision : nn.Module
        Images (B, C, H, W) to tokens (B, N, W); stays frozen and in evaluation mode.
    lm : nn.Module
        A causal language model of transformers; frozen, its LoRA excepted.
    tokenizer : callable
        Its tokenizer. It needs an end-of-sequence token; padding is masked, so no padding token is needed.
    projector : nn.Module
        From ``group * W`` to the width of the language model.
    group : int, default: 4
        Visual tokens per vector.
    max_length : int, default: 1024
        Longest sequence, visual tokens included; a longer one is an error.

    Raises
    ------
    ModelError
        If the tokenizer has no end-of-sequence token.
    """

    def __init__(
        self,
        vision: nn.Module,
        lm: Any,
        tokenizer: Any,
        projector: nn.Module,
        *,
        group: int = 4,
        max_length: int = 1024,
    ) -> None:
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise ModelError("tokenizer", found="no end-of-sequence token", expected="one, which ends an answer")
        self.vision = vision.requires_grad_(False).eval()
        self.lm = lm.requires_grad_(False)
        self.tokenizer, self.projector, self.group, self.max_length = tokenizer, projector, group, max_length

    def train(self, mode: bool = True) -> VisionPrefixLM:
        """Set the mode; the vision encoder stays in evaluation mode."""
        super().train(mode)
        self.vision.eval()
        return self

    def add_lora(
        self,
        *,
        r: int = 64,
        alpha: float = 16,
        dropout: float = 0.05,
        target_modules: Sequence[str] = ("q_proj", "v_proj"),
    ) -> VisionPrefixLM:
        """Add LoRA of PEFT to the language model; returns the model itself.

        Raises
        ------
        ModelError
            If it has LoRA already, or a target is no layer of the language model. The candidates are named.
        """
        from peft import LoraConfig, PeftModel, get_peft_model

        if isinstance(self.lm, PeftModel):
            raise ModelError("language model", found="a model with adapters", expected="one without")
        names = {name.rpartition(".")[2] for name, _ in self.lm.named_modules()}
        missing = [name for name in target_modules if name not in names]
        if missing:
            layers = {
                name.rpartition(".")[2]
                for name, module in self.lm.named_modules()
                if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
            }
            raise ModelError(
                "target_modules", found=", ".join(missing), expected=f"layers of the model: {', '.join(sorted(layers))}"
            )
        config = LoraConfig(
            r=r,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=list(target_modules),
            task_type="CAUSAL_LM",
        )
        self.lm = get_peft_model(self.lm, config)
        return self

    def visual_prefix(self, images: Tensor) -> Float[Tensor, "B M D"]:
        """Embeddings of images, (B, M, D)."""
        with torch.no_grad():
            tokens = group_tokens(self.vision(images), self.group)
        weight = next(self.projector.parameters())
        if weight.ndim == 2 and weight.shape[1] != tokens.shape[-1]:
            raise ModelError(
                "visual tokens",
                found=f"{self.group} joined tokens of width {tokens.shape[-1]}",
                expected=f"width {weight.shape[1]}, which the projector takes",
            )
        embedded: Tensor = self.projector(tokens.to(weight.dtype)).to(self._embed.weight.dtype)
        return embedded

    def forward(self, images: Tensor, prompts: Sequence[str], answers: Sequence[str]) -> Any:
        """Cross-entropy of the answers and their end token; see the output's ``loss`` and ``logits``.

        Raises
        ------
        ModelError
            If an answer is empty, a prompt has not exactly one placeholder, the numbers differ, or a sequence is too
            long.
        """
        embeds, mask, labels = self.inputs(images, prompts, answers)
        return self.lm(inputs_embeds=embeds, attention_mask=mask, labels=labels)

    def inputs(
        self, images: Tensor, prompts: Sequence[str], answers: Sequence[str] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (B, L, D), mask and labels (B, L): padded right with answers, left without."""
        if not len(images) == len(prompts) == len(answers if answers is not None else prompts):
            raise ModelError("batch", found=f"{len(images)} images, {len(prompts)} prompts", expected="as many of each")
        rows: list[Tensor] = []
        labels: list[Tensor] = []
        for place, (prefix, prompt) in enumerate(zip(self.visual_prefix(images), prompts, strict=True)):
            parts = prompt.split(PLACEHOLDER)
            if len(parts) != 2:
                raise ModelError(
                    f"prompt {place}", found=f"{len(parts) - 1} times {PLACEHOLDER}", expected="once, as one image"
                )
            bos = self.tokenizer.bos_token_id
            before = ([] if bos is None else [bos]) + self._ids(parts[0])
            target: list[int] = []
            if answers is not None:
                target = self._ids(answers[place])
                if not target:
                    raise ModelError(f"answer {place}", found="no token", expected="a text")
                target.append(self.tokenizer.eos_token_id)
            after = self._ids(parts[1])
            row = torch.cat([self._embedded(before), prefix, self._embedded([*after, *target])])
            if len(row) > self.max_length:
                raise ModelError(f"sequence {place}", found=f"{len(row)} tokens", expected=f"<= {self.max_length}")
            rows.append(row)
            label = torch.full((len(row),), IGNORED)
            if target:
                label[-len(target) :] = torch.tensor(target)
            labels.append(label)
        side = "right" if answers is not None else "left"
        pad = torch.nn.utils.rnn.pad_sequence
        mask = pad([torch.ones(len(row), dtype=torch.long) for row in rows], True, 0, side).to(rows[0].device)
        return pad(rows, True, 0.0, side), mask, pad(labels, True, IGNORED, side).to(rows[0].device)

    @torch.no_grad()
    def generate(
        self, images: Tensor, prompts: Sequence[str], *, max_new_tokens: int = 512, **options: Any
    ) -> list[str]:
        """Answers, greedy unless the options of ``transformers`` say otherwise."""
        training = self.training
        self.eval()
        try:
            embeds, mask, _ = self.inputs(images, prompts)
            eos = self.tokenizer.eos_token_id
            settings = {"do_sample": False, "pad_token_id": eos, "eos_token_id": eos, **options}
            found = self.lm.generate(
                inputs_embeds=embeds, attention_mask=mask, max_new_tokens=max_new_tokens, **settings
            )
        finally:
            self.train(training)
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in found]

    def reader(self, prompt: str, preprocess: Callable[[Any], Tensor], **options: Any) -> Callable[[Any], str]:
        """What `CalorieEstimator` takes as ``reader``: a photo, preprocessed to (C, H, W), to its list."""
        return lambda photo: self.generate(preprocess(photo)[None], [prompt], **options)[0]

    def save(self, folder: str | Path) -> None:
        """Write the adapter as PEFT does, and ``projector.safetensors``."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(self.lm, "peft_config"):
            self.lm.save_pretrained(folder)
        with atomic_output(folder / "projector.safetensors") as path:
            save_file({name: value.contiguous() for name, value in self.projector.state_dict().items()}, path)

    def load(self, folder: str | Path) -> VisionPrefixLM:
        """Read what `save` wrote into this model, whose LoRA has been added.

        Raises
        ------
        ModelError
            If keys are missing, unexpected or of another shape; they are listed, and nothing is changed.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        parts: list[tuple[str, dict[str, Tensor]]] = [("projector.safetensors", self.projector.state_dict())]
        if hasattr(self.lm, "peft_config"):
            from peft import get_peft_model_state_dict

            parts.append(("adapter_model.safetensors", get_peft_model_state_dict(self.lm)))
        elif (folder / "adapter_model.safetensors").exists():
            raise ModelError(
                f"{folder}", found="an adapter", expected="a model with LoRA", do="Call add_lora() before load()."
            )
        read = []
        for name, own in parts:
            if not (folder / name).is_file():
                raise ModelError(f"{folder / name}", found="no file", expected="what save() wrote")
            stored = load_file(folder / name)
            missing, unexpected = sorted(own.keys() - stored.keys()), sorted(stored.keys() - own.keys())
            shapes = [key for key in own.keys() & stored.keys() if own[key].shape != stored[key].shape]
            if missing or unexpected or shapes:
                raise ModelError(
                    f"{folder / name}",
                    found=f"missing: {missing}; unexpected: {unexpected}; other shapes: {sorted(shapes)}",
                    expected="exactly the keys of this model",
                    do="Add LoRA with the same rank and target modules.",
                )
            read.append((own, stored))
        with torch.no_grad():
            for own, stored in read:
                for key, value in own.items():
                    value.copy_(stored[key])
        return self

    @property
    def _embed(self) -> Any:
        return self.lm.get_input_embeddings()

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids) if text else []

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        found: Tensor = self._embed(torch.tensor(ids, dtype=torch.long, device=self._embed.weight.device))
        return found
