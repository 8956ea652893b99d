"""The bottleneck behind a frozen encoder: pooling, training, saving and loading."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Integer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from weightsmith.continual._dkvb.bottleneck import DiscreteKeyValueBottleneck
from weightsmith.core.data import Batch, Batches, Samples, batched, call, pad_token_id, split_labels, to_model
from weightsmith.core.errors import CalibrationError, CheckpointError, NonFiniteError, UnsupportedModelError
from weightsmith.core.io import atomic_output, read_json
from weightsmith.core.linalg import is_finite, upcast
from weightsmith.core.models import evaluation_mode, get_module
from weightsmith.core.progress import track
from weightsmith.core.training import modes_restored
from weightsmith.embedded import open_model

__all__ = ["BottleneckClassifier"]

WEIGHTS, CONFIG = "bottleneck.safetensors", "config.json"
FORMAT = "weightsmith-dkvb"
SIZES = ("in_features", "num_classes", "codebooks", "pairs", "key_dim", "splitter", "decay", "eps", "dead_factor")


class BottleneckClassifier(nn.Module):
    """A classifier made of a frozen encoder and a bottleneck, for classes that arrive in turn.

    Parameters
    ----------
    encoder : nn.Module or str
        Any model, or a folder, Hugging Face id or ``embedded:NAME``. It is frozen, always runs in evaluation mode, and
        never changes, the statistics of batch normalization included.
    num_classes : int
        Outputs; :meth:`add_classes` adds more.
    layer : str, optional
        Take what this layer of the encoder receives, such as the head of a classifier (``"_fc"`` for
        ``embedded:efficientnet-lite0``). By default the encoder's output: hidden states, averaged over positions that
        are not padding; or a tensor. One of three axes holds samples, positions and features, and is averaged over
        positions; one of more has its features second, as images do, and is averaged over all behind them. End an
        encoder of one-dimensional convolutions with a pooling layer.
    processor : callable, optional
        For :meth:`prepare`: tokenizer or image processor. By default that of the opened encoder.
    **sizes
        As for :class:`DiscreteKeyValueBottleneck`: ``codebooks``, ``pairs``, ``key_dim`` and more.

    Notes
    -----
    The encoder runs once per sample; training then works on its codes.

    Examples
    --------
    >>> from torch.utils.data import TensorDataset
    >>> encoder = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    >>> x = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    >>> classifier = BottleneckClassifier(encoder, 3, codebooks=8, pairs=8, key_dim=2)
    >>> classifier.init_keys([x[:30], x[30:]])
    >>> classifier.partial_fit([(row, 2) for row in x], epochs=3)
    >>> classifier.eval()(x[:2]).argmax(1)
    tensor([2, 2])
    """

    def __init__(
        self,
        encoder: nn.Module | str,
        num_classes: int,
        *,
        layer: str | None = None,
        processor: Any = None,
        **sizes: Any,
    ) -> None:
        super().__init__()
        self.reference = encoder if isinstance(encoder, str) else None
        if isinstance(encoder, str):
            opened = open_model(encoder)
            encoder, processor = opened.model, processor or opened.processor or opened.tokenizer
        self.encoder = encoder.requires_grad_(False).eval()
        if layer is not None:
            get_module(encoder, layer)
        self.layer, self.processor = layer, processor
        self._sizes = {"num_classes": num_classes, **sizes}
        self.bottleneck: DiscreteKeyValueBottleneck | None = None
        if "in_features" in sizes:
            self._make(sizes["in_features"])

    def train(self, mode: bool = True) -> BottleneckClassifier:
        """Set the mode of the bottleneck; the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, *inputs: Any, **named: Any) -> Float[Tensor, "N O"]:
        """Return the logits of a batch, given as the encoder takes it; ``labels`` are left out."""
        batch: Any = {name: value for name, value in named.items() if name != "labels"}
        logits: Tensor = self._made(self.features(batch or (inputs[0] if len(inputs) == 1 else inputs)))
        return logits

    @torch.no_grad()
    def features(self, batch: Batch) -> Float[Tensor, "N D"]:
        """Return the pooled features of a batch, in float32 or better.

        Raises
        ------
        UnsupportedModelError
            If the encoder's output holds no features, or it does not run the layer.
        """
        batch = to_model(batch, self.encoder)
        with evaluation_mode(self.encoder):
            if self.layer is not None:
                return _pooled(self._received(batch), batch)
            output = call(self.encoder, batch)
        return _pooled(output, batch)

    def init_keys(self, batches: Batches, **options: Any) -> None:
        """Place the keys where the features of unlabeled batches are; options as for the bottleneck's ``init_keys``.

        Labels in a batch are left out. All values become zero.

        Raises
        ------
        CalibrationError
            If there are no batches.
        NonFiniteError
            If features are NaN or infinite; the message names the batch.
        """
        features = self._features_of(batches)
        if self.bottleneck is None:
            self._make(features.shape[1])
        self._made.init_keys(features, **options)

    def encode(self, batches: Batches) -> Integer[Tensor, "N C"]:
        """Return the codes of all batches, for the bottleneck's ``fit_codes``."""
        bottleneck, features = self._made, self._features_of(batches)
        with modes_restored(bottleneck):
            return bottleneck.train().encode(features)

    def partial_fit(self, training: Samples, *, batch_size: int = 32, **options: Any) -> None:
        """Learn from samples, mappings with ``labels`` or pairs; values that they do not use stay unchanged.

        Parameters
        ----------
        training : sequence of samples
            Of old classes, new ones, or both.
        batch_size : int, default: 32
            Samples that the encoder reads at once.
        **options
            ``epochs``, ``learning_rate``, ``label_smoothing`` and ``generator`` of the bottleneck's ``fit_codes``.
        """
        batches = batched(training, batch_size, pad_token_id=pad_token_id(self.encoder))
        labels = torch.cat([split_labels(batch)[1].flatten() for batch in batches])
        self._made.fit_codes(self.encode(batches), labels, **options)

    def add_classes(self, count: int) -> None:
        """Add classes; the logits of the present ones stay unchanged."""
        self._made.add_classes(count)

    def prepare(self, inputs: Any) -> dict[str, Tensor]:
        """Return texts or images as the encoder takes them.

        Raises
        ------
        UnsupportedModelError
            If the encoder came without a tokenizer or image processor.
        """
        if self.processor is None:
            raise UnsupportedModelError("the encoder has no tokenizer or image processor", do="Give one: processor=...")
        if hasattr(self.processor, "pad"):
            return dict(self.processor(list(inputs), padding=True, truncation=True, return_tensors="pt"))
        return dict(self.processor(list(inputs), return_tensors="pt"))

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the bottleneck (safetensors) and how its encoder is named; the encoder itself is not written.

        Raises
        ------
        CheckpointError
            If the folder cannot be written.
        """
        bottleneck = self._made
        sizes = {name: getattr(bottleneck, name) for name in SIZES}
        config = {"format": FORMAT, "encoder": self.reference, "layer": self.layer, "bottleneck": sizes}
        with atomic_output(Path(folder), overwrite=overwrite) as target:
            target.mkdir(exist_ok=True)
            save_file({name: value.contiguous() for name, value in bottleneck.state_dict().items()}, target / WEIGHTS)
            (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], encoder: nn.Module | str | None = None, *, processor: Any = None
    ) -> BottleneckClassifier:
        """Read what :meth:`save` wrote, in evaluation mode.

        Parameters
        ----------
        folder : path-like
            The folder.
        encoder : nn.Module or str, optional
            The encoder; by default the one that it was named by.
        processor : callable, optional
            As for the constructor.

        Raises
        ------
        CheckpointError
            If the folder is damaged, or an encoder that had no name is not given.
        """
        config = read_json(Path(folder) / CONFIG)
        if not isinstance(config, Mapping) or config.get("format") != FORMAT:
            raise CheckpointError(
                f"no bottleneck at {folder}", do="Name a folder that BottleneckClassifier.save wrote."
            )
        encoder = encoder or config["encoder"]
        if encoder is None:
            raise CheckpointError(f"the encoder of {folder} has no name", do="Give the model: encoder=...")
        classifier = cls(encoder, layer=config["layer"], processor=processor, **config["bottleneck"])
        try:
            classifier._made.load_state_dict(load_file(Path(folder) / WEIGHTS))
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"the bottleneck of {folder} cannot be read", found=error) from error
        return classifier.eval()

    @property
    def _made(self) -> DiscreteKeyValueBottleneck:
        if self.bottleneck is None:
            raise CalibrationError("the keys have not been placed", do="Call init_keys(batches) first.")
        return self.bottleneck

    def _make(self, in_features: int) -> None:
        sizes = {name: value for name, value in self._sizes.items() if name != "in_features"}
        like = next(self.encoder.parameters(), torch.empty(0))
        self.bottleneck = DiscreteKeyValueBottleneck(in_features, **sizes).to(like.device).train(self.training)

    def _features_of(self, batches: Batches) -> Tensor:
        found = []
        for number, batch in enumerate(track(batches, "encoding")):
            inputs = split_labels(batch)[0] if _has_labels(batch) else batch
            found.append(self.features(inputs))
            if not is_finite(found[-1]):
                raise NonFiniteError(f"the features hold NaN or infinity at batch {number}")
        if not found:
            raise CalibrationError("no batches", expected="at least one")
        return torch.cat(found)

    def _received(self, batch: Batch) -> Tensor:
        assert self.layer is not None
        seen: list[Tensor] = []
        hook = get_module(self.encoder, self.layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            call(self.encoder, batch)
        finally:
            hook.remove()
        if not seen:
            raise UnsupportedModelError(f"the encoder does not run its layer {self.layer!r}")
        return seen[-1]


def _has_labels(batch: Any) -> bool:
    return "labels" in batch if isinstance(batch, Mapping) else isinstance(batch, (tuple, list)) and len(batch) == 2


def _pooled(output: Any, batch: Any) -> Float[Tensor, "N D"]:
    """The features of a model's output, averaged over positions."""
    hidden = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
    if not isinstance(hidden, Tensor) or hidden.ndim < 2:
        raise UnsupportedModelError(
            "the output of the encoder holds no features",
            found=type(output).__name__,
            expected="a tensor, or an object with last_hidden_state",
            do="Load the model without its head, or name the layer whose input to take: layer=...",
        )
    hidden = upcast(hidden)
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is not None and hidden.ndim == 3 and hidden.shape[:2] == mask.shape:
        weight = mask.to(hidden)[..., None]
        return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)
    if hidden.ndim == 3:
        return hidden.mean(1)
    return hidden.flatten(2).mean(2) if hidden.ndim > 3 else hidden
