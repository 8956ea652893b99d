"""A causal language model that reads an image as a prefix of visual tokens: frozen parts, a projector and LoRA.

CaLoRAify (Yao et al., 2024, arXiv:2412.09936). Every ``group`` consecutive visual tokens are joined into one vector, a
linear projector maps it to the width of the language model, and it takes the place of ``<ImageHere>`` in the prompt.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutput

from weightsmith.core.data import call
from weightsmith.core.models import device_of, evaluation_mode
from weightsmith.core.progress import track
from weightsmith.core.training import Fit, FitOptions
from weightsmith_kitchen.errors import ModelError
from weightsmith_kitchen.photos.backbones import LITE0
from weightsmith_kitchen.photos.images import PhotoSource, name_of, open_photo
from weightsmith_kitchen.photos.preprocess import Preprocess
from weightsmith_kitchen.vlm import storage
from weightsmith_kitchen.vlm.parts import (
    PLACEHOLDER,
    Checkpointing,
    Prefixed,
    group_tokens,
    new_projector,
    open_parts,
    with_lora,
)
from weightsmith_kitchen.vlm.training import check_rows, train

__all__ = ["PLACEHOLDER", "PROMPT", "VisionPrefixLM", "group_tokens"]

PROMPT = f"{PLACEHOLDER}\n"
"""The default prompt: a model that is trained for one question needs no words for it, and each costs time."""
IGNORED = -100
BATCH = 32
"""Photos that the encoder reads at once."""


class VisionPrefixLM(Checkpointing, Prefixed):
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
    prompt : str, default: PROMPT
        The prompt where none is given: the same in training and in use.
    preprocess : Preprocess, optional
        How photos become images; as EfficientNet-Lite0 reads them by default.
    names : mapping of str to str, optional
        What :meth:`from_parts` opened vision and language model by.

    Raises
    ------
    ModelError
        If the tokenizer has no end-of-sequence token.

    Examples
    --------
    >>> vlm = VisionPrefixLM.from_parts().add_lora(r=8)
    >>> sum(p.numel() for p in vlm.parameters() if p.requires_grad)  # projector and LoRA
    5622336
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
        prompt: str = PROMPT,
        preprocess: Preprocess | None = None,
        names: dict[str, str | None] | None = None,
    ) -> None:
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise ModelError("tokenizer", found="no end-of-sequence token", expected="one, which ends an answer")
        self.vision = vision.requires_grad_(False).eval()
        self.lm = lm.requires_grad_(False)
        self.tokenizer, self.projector, self.group, self.max_length = tokenizer, projector, group, max_length
        self.prompt, self.preprocess = prompt, preprocess or Preprocess()
        self.names: dict[str, str | None] = {"vision": None, "lm": None, **(names or {})}
        self.number_head: nn.Linear | None = None

    @classmethod
    def from_parts(
        cls,
        vision: str | nn.Module = LITE0,
        lm: str | os.PathLike[str] | nn.Module = "embedded:smollm2",
        *,
        tokenizer: Any = None,
        group: int = 7,
        max_length: int = 1024,
        prompt: str = PROMPT,
        preprocess: Preprocess | None = None,
        generator: torch.Generator | None = None,
    ) -> VisionPrefixLM:
        """Join an encoder and a language model by a new projector.

        Parameters
        ----------
        vision : str or nn.Module, default: "embedded:efficientnet-lite0"
            See :func:`~weightsmith_kitchen.vlm.parts.open_vision`.
        lm : str, path-like or nn.Module, default: "embedded:smollm2"
            A causal language model: embedded, a Hugging Face folder, or a module with ``tokenizer``.
        tokenizer : callable, optional
            For a module.
        group : int, default: 7
            Visual tokens per vector; it has to divide their number. The paper has 4 of 1,024 tokens. Lite0's 49 have
            the divisors 1, 7 and 49; 7 makes a vector of each row of the map, and a prefix of 7 embeddings, not 49.
        max_length, prompt, preprocess
            See :class:`VisionPrefixLM`.
        generator : torch.Generator, optional
            What the projector is drawn from.

        Raises
        ------
        ModelError
            If a part cannot be opened, a module has no tokenizer, or the group does not divide the number of tokens.
        """
        opened, lm, tokenizer, name = open_parts(vision, lm, tokenizer, preprocess)
        projector = new_projector(opened, lm, group, generator)
        return cls(
            opened.module,
            lm,
            tokenizer,
            projector,
            group=group,
            max_length=max_length,
            prompt=prompt,
            preprocess=opened.preprocess,
            names={"vision": opened.name, "lm": name},
        )

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
        self.lm = with_lora(self.lm, r=r, alpha=alpha, dropout=dropout, target_modules=target_modules)
        return self

    def add_number_head(self) -> VisionPrefixLM:
        """Add a linear head that reads a number (such as kcal) where the answer begins; returns the model itself.

        The paper's text has the term ``lambda_MSE L_MSE``, its code does not: off unless this is called.
        """
        self.number_head = nn.Linear(self._embed.weight.shape[1], 1, device=self._embed.weight.device)
        return self

    def encode(self, photos: Sequence[PhotoSource]) -> Float[Tensor, "photos N W"]:
        """Visual tokens of photos, in half precision: the frozen part of the work, done once per photo.

        Raises
        ------
        PhotoError
            If a photo cannot be read.
        """
        device = device_of(self.vision)
        found = []
        with torch.no_grad():
            for start in track(range(0, len(photos), BATCH), "reading photos"):
                images = [
                    self.preprocess(open_photo(photo, side=self.preprocess.decode_side(), name=name_of(photo)))
                    for photo in photos[start : start + BATCH]
                ]
                found.append(self.vision(torch.stack(images).to(device)).half().cpu())
        if not found:
            raise ModelError("photos", found="none", expected="one or more")
        return torch.cat(found)

    def visual_prefix(self, images: Tensor) -> Float[Tensor, "B M D"]:
        """Embeddings of images (B, C, H, W), or of the tokens (B, N, W) that `encode` made of them."""
        with torch.no_grad():
            tokens = group_tokens(self.vision(images) if images.ndim == 4 else images, self.group)
        weight = next(self.projector.parameters())
        if weight.ndim == 2 and weight.shape[1] != tokens.shape[-1]:
            raise ModelError(
                "visual tokens",
                found=f"{self.group} joined tokens of width {tokens.shape[-1]}",
                expected=f"width {weight.shape[1]}, which the projector takes",
            )
        embedded: Tensor = self.projector(tokens.to(weight)).to(self._embed.weight.dtype)
        return embedded

    def forward(
        self, images: Tensor, prompts: Sequence[str], answers: Sequence[str], numbers: Tensor | None = None
    ) -> CausalLMOutput:
        """Cross-entropy of the answers and their end token, and the logits of the positions that predict them.

        Parameters
        ----------
        images : Tensor
            Of shape (B, C, H, W), or the tokens (B, N, W) of `encode`.
        prompts, answers : sequence of str
            Of each image.
        numbers : Tensor, optional
            Of shape (B,): adds the mean squared error of the number head to the loss.

        Raises
        ------
        ModelError
            If an answer is empty, a prompt has not exactly one placeholder, the counts differ, a sequence is too long,
            or numbers come without a number head.
        """
        embeds, mask, labels = self.inputs(images, prompts, answers)
        wanted = labels != IGNORED
        first = wanted.int().argmax(1)
        # The vocabulary is most of the work at a position: logits only from the first answer on.
        kept = labels.shape[1] - int(first.min()) + 1
        options: dict[str, Any] = {"output_hidden_states": True} if numbers is not None else {}
        if "logits_to_keep" in inspect.signature(self._base.forward).parameters:
            options["logits_to_keep"] = kept
        output = self.lm(inputs_embeds=embeds, attention_mask=mask, **options)
        logits = output.logits[:, -kept:-1]
        counted = wanted[:, 1 - kept :]
        loss = functional.cross_entropy(logits[counted].float(), labels[:, 1 - kept :][counted])
        if numbers is not None:
            if self.number_head is None:
                raise ModelError("numbers", found="no number head", do="Call add_number_head() first.")
            states = output.hidden_states[-1][torch.arange(len(first)), first - 1]
            said = self.number_head(states.to(self.number_head.weight.dtype)).squeeze(1)
            loss = loss + functional.mse_loss(said.float(), numbers.to(said.device).float())
        return CausalLMOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def numbers(self, images: Tensor, prompts: Sequence[str] | None = None) -> Float[Tensor, " B"]:
        """What the number head says of images or tokens.

        Raises
        ------
        ModelError
            If there is none.
        """
        if self.number_head is None:
            raise ModelError("numbers", found="no number head", do="Call add_number_head() and train it.")
        with evaluation_mode(self):
            embeds, mask, _ = self.inputs(images, prompts or [self.prompt] * len(images))
            batch = {"inputs_embeds": embeds, "attention_mask": mask, "output_hidden_states": True}
            states = call(self.lm, batch).hidden_states[-1]  # learned positions are counted without the padding
        found: Tensor = self.number_head(states[:, -1].to(self.number_head.weight.dtype)).squeeze(1)
        return found

    def fit(
        self,
        photos: Sequence[PhotoSource] | Tensor,
        answers: Sequence[str],
        *,
        prompts: Sequence[str] | None = None,
        numbers: Sequence[float] | None = None,
        lm_learning_rate: float | None = None,
        schedule: Callable[[int], float] | None = None,
        after_step: Callable[[int, float], None] | None = None,
        seed: int = 0,
        **options: Unpack[FitOptions],
    ) -> Fit:
        """Train the projector and the LoRA, if there is one; vision encoder and language model stay as they are.

        AdamW with betas 0.9 and 0.999 and weight decay on matrices only. Visual tokens are computed once per photo. On
        an exception the model is as before.

        Parameters
        ----------
        photos : sequence of photos, or Tensor
            Paths, bytes, files or images; or what `encode` returned for them.
        answers : sequence of str
            The text of each.
        prompts : sequence of str, optional
            The question of each, with the placeholder of the image; by default the model's own prompt.
        numbers : sequence of float, optional
            Of each photo, of scale 1: the number head learns them beside the answers.
        lm_learning_rate : float, optional
            Of the LoRA, or of a language model that was unfrozen; by default ``learning_rate``, as the projector's.
        schedule : callable, optional
            From an optimizer step to its learning rate, in place of the options, such as `paper_learning_rate`.
        after_step, seed
            As in :func:`weightsmith.core.training.fit`.
        **options
            Learning rate, epochs and more of :class:`weightsmith.core.training.FitOptions`. Defaults here: learning
            rate 1e-3, weight decay 0.05, 8 epochs, 16 photos, a cosine with a warm-up of 10 %, gradients clipped to
            norm 1.

        Raises
        ------
        ModelError
            If the counts differ, or an answer is empty or too long; all such rows are named.
        NonFiniteError
            If the loss becomes NaN or infinite.
        PhotoError
            If a photo cannot be read.
        """
        asked = [self.prompt] * len(answers) if prompts is None else list(prompts)
        counts = {len(photos), len(answers), len(asked), len(answers if numbers is None else numbers)}
        if len(counts) > 1:
            raise ModelError(
                "training rows", found=f"{len(photos)} photos, {len(answers)} answers", expected="as many of each"
            )
        if numbers is not None and self.number_head is None:
            raise ModelError("numbers", found="no number head", do="Call add_number_head() first.")
        weight = next(self.projector.parameters())
        check_rows(self, 0, answers, asked)
        tokens = photos if isinstance(photos, Tensor) else self.encode(photos)
        prefix = self.visual_prefix(tokens[:1].to(weight.device)).shape[1]  # another width is said before training
        check_rows(self, prefix, answers, asked)
        return train(
            self,
            tokens,
            answers,
            prompts=asked,
            numbers=numbers,
            lm_learning_rate=lm_learning_rate,
            schedule=schedule,
            after_step=after_step,
            seed=seed,
            **options,
        )

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
            before = ([] if bos is None else [bos]) + self.token_ids(parts[0])
            target: list[int] = []
            if answers is not None:
                target = self.token_ids(answers[place])
                if not target:
                    raise ModelError(f"answer {place}", found="no token", expected="a text")
                target.append(self.tokenizer.eos_token_id)
            after = self.token_ids(parts[1])
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
        self, images: Tensor, prompts: Sequence[str] | None = None, *, max_new_tokens: int = 512, **options: Any
    ) -> list[str]:
        """Answers to images (B, C, H, W) or tokens (B, N, W), greedy unless the options of ``transformers`` differ."""
        with evaluation_mode(self):
            embeds, mask, _ = self.inputs(images, prompts or [self.prompt] * len(images))
            eos = self.tokenizer.eos_token_id
            settings = {"do_sample": False, "pad_token_id": eos, "eos_token_id": eos, **options}
            found = self.lm.generate(
                inputs_embeds=embeds, attention_mask=mask, max_new_tokens=max_new_tokens, **settings
            )
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in found]

    def read(self, photos: Sequence[PhotoSource], *, max_new_tokens: int = 128, **options: Any) -> list[str]:
        """The lists of photos, a batch at a time; see `generate`."""
        return self.write(self.encode(photos), max_new_tokens=max_new_tokens, **options)

    def write(self, tokens: Tensor, *, max_new_tokens: int = 128, **options: Any) -> list[str]:
        """The lists of any number of photos, of which `encode` made the tokens; a batch at a time, by `generate`."""
        device = next(self.projector.parameters()).device
        found: list[str] = []
        for part in tokens.split(2 * BATCH):
            found += self.generate(part.to(device), max_new_tokens=max_new_tokens, **options)
        return found

    def reader(
        self,
        prompt: str | None = None,
        preprocess: Callable[[Any], Tensor] | None = None,
        *,
        max_new_tokens: int = 128,
        **options: Any,
    ) -> Callable[[Any], str]:
        """What `CalorieEstimator` takes as ``reader``: from a photo to its list.

        Parameters
        ----------
        prompt : str, optional
            The question; by default that of the training.
        preprocess : callable, optional
            From a photo to an image (C, H, W); by default the model's own, which takes paths, bytes and images.
        max_new_tokens : int, default: 128
            Longest answer.
        **options
            Of ``generate`` of transformers.
        """

        def read(photo: Any) -> str:
            images = self.encode([photo]) if preprocess is None else preprocess(photo)[None]
            images = images.to(next(self.projector.parameters()).device)
            return self.generate(images, [prompt or self.prompt], max_new_tokens=max_new_tokens, **options)[0]

        return read

    def save(self, folder: str | Path) -> None:
        """Write the adapter as PEFT does, and ``projector.safetensors``."""
        storage.save(self, folder)

    def load(self, folder: str | Path) -> VisionPrefixLM:
        """Read what `save` wrote into this model, whose LoRA has been added.

        Raises
        ------
        ModelError
            If keys are missing, unexpected or of another shape; they are listed, and nothing is changed.
        """
        storage.load(self, folder)
        return self

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, files: dict[str, str] | None = None, overwrite: bool = False
    ) -> None:
        """Write a folder that :meth:`from_pretrained` opens: what was trained, ``config.json`` and a model card.

        Parameters
        ----------
        folder : path-like
            The folder to create, all or nothing.
        files : mapping of str to str, optional
            More small files: name to text.
        overwrite : bool, default: False
            Replace what is there.

        Raises
        ------
        ModelError
            If the language model itself was trained: it is no adapter.
        CheckpointError
            If the folder exists or cannot be written.
        """
        storage.save_pretrained(self, folder, files=files or {}, overwrite=overwrite)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        vision: nn.Module | None = None,
        lm: nn.Module | None = None,
        tokenizer: Any = None,
    ) -> VisionPrefixLM:
        """Open a folder that :meth:`save_pretrained` wrote.

        Parameters
        ----------
        folder : path-like
            The folder.
        vision, lm, tokenizer : optional
            The parts, for a model that was made of modules and not of names.

        Raises
        ------
        ModelError
            If the folder is something else, a part is missing, or weights do not fit.
        """
        return storage.from_pretrained(cls, folder, vision=vision, lm=lm, tokenizer=tokenizer)

    @property
    def _embed(self) -> Any:
        return self.lm.get_input_embeddings()

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        found: Tensor = self._embed(torch.tensor(ids, dtype=torch.long, device=self._embed.weight.device))
        return found
