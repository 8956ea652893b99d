"""What users have, as what a model takes: files, folders and hub data sets to samples and batches.

==========================================  ======================================================================
``.txt`` and other text                     windows of its tokens
``.jsonl``, ``.json``, ``.csv``, ``.tsv``,  rows with the columns ``messages``; ``prompt`` and ``completion``;
``.parquet``, or a hub id                   ``text``, with or without ``label``; ``image``, with or without ``label``
a folder of images                          one sub-folder per class, or no sub-folders
``.safetensors``                            tensors with one sample per row
==========================================  ======================================================================

Chats go through the model's chat template, and only the answers have labels; after a ``prompt`` only the
``completion`` has. Rows of text begin as the tokenizer begins a text, with ``<s>`` where it puts one; windows do not.
Images go through the model's own processor. Rows are read by the ``datasets`` library.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from weightsmith.core.data._batches import IGNORED, Batch, Sample, is_regression
from weightsmith.core.data._chat import render_cuts
from weightsmith.core.data._images import picture
from weightsmith.core.data._rows import LabelColumn, Row, drawn, is_text, read_rows
from weightsmith.core.data._text import read_text, start_ids, token_ids, token_windows
from weightsmith.core.errors import CalibrationError
from weightsmith.core.processes import base_model

__all__ = ["Reader", "context_length"]

FORMS = "messages; prompt and completion; text, with or without label; or image, with or without label"
BATCH_SIZE = 8
TOKEN_TASKS = ("MaskedLM", "TokenClassification", "QuestionAnswering", "MultipleChoice", "PreTraining")
"""In the names of models whose labels are neither the next tokens nor the class of a text."""
TOKEN_LABELS = "Give a .safetensors file with input_ids, and labels of tokens."


@dataclass(frozen=True)
class Reader:
    """Reads data for one model.

    Attributes
    ----------
    model : nn.Module
        Its configuration says how long inputs may be and which classes there are.
    tokenizer : object or None
        The transformers tokenizer, for models that read text.
    processor : object or None
        The image processor: called with a list of images, it returns ``pixel_values``.
    """

    model: nn.Module
    tokenizer: Any = None
    processor: Any = None

    def samples(
        self, source: str | Path, *, count: int, length: int, generator: torch.Generator | None = None
    ) -> list[Sample]:
        """Read samples to train on or to measure.

        Parameters
        ----------
        source : path-like or str
            A file, a folder of images, or a hub id; ``ID:SPLIT`` names a split other than ``train``.
        count : int
            Samples; fewer if there are fewer. Of more rows they are drawn at random: those of a table or a hub data
            set among the first 10,000. Rows without a token that counts in the loss are left out, with a warning.
        length : int
            Tokens per sample at most; also bounded by the model's context.
        generator : torch.Generator, optional
            Draws rows and windows.

        Returns
        -------
        list
            Mappings of keyword arguments with ``labels``, where positions without label hold -100 and padding is
            masked. For a model without configuration: ``(input, label)``, or the input alone.

        Raises
        ------
        CalibrationError
            If there is no such data, it has none of the known forms, the model cannot read it, a label is not one of
            its classes or it has no classes, or there are none: text is its own label only for a causal language model.
        """
        samples = self._read(source, count, length, generator, labeled=True)
        first = 0 if self._is_encoder_decoder else 1  # nothing predicts the first token of a text
        counting = [sample for sample in samples if _counts(sample, first)]
        if not counting:
            raise CalibrationError(
                "no position has a label",
                found="answers beyond the length, or texts of one token",
                do="Give a larger length, or longer texts.",
            )
        if left_out := len(samples) - len(counting):
            warnings.warn(
                f"{left_out} of {len(samples)} rows of {source} are left out: "
                "no answer within the length, or a text of at most one token",
                stacklevel=2,
            )
        return counting

    def batches(
        self, source: str | Path, *, count: int, length: int, generator: torch.Generator | None = None
    ) -> list[Batch]:
        """Read inputs to run the model on: :meth:`samples` without their labels, eight per batch.

        An encoder-decoder keeps the labels: its decoder reads them.
        """
        samples = self._read(source, count, length, generator, labeled=False)
        return self._batched([sample for sample in samples if _has_tokens(sample)])

    def text(self, source: str | Path, *, rows: int = 1000) -> str:
        """Read running text: a text file, or the first rows of the column ``text`` of a table, a blank line between."""
        path = Path(source)
        if is_text(path):
            return read_text(path)
        table, _ = read_rows(str(source), rows, None)
        if "text" not in table[0]:
            raise CalibrationError(f"columns of {source}", found=sorted(table[0]), expected="text")
        return "\n\n".join(row["text"] for row in table)

    def text_samples(
        self, text: str, *, count: int, length: int, generator: torch.Generator | None = None
    ) -> list[Sample]:
        """Draw windows of a text's tokens; each is its own label.

        Raises
        ------
        CalibrationError
            If the model is not one that predicts each token from those before it, or the text is too short.
        """
        self._check_own_labels("the text")
        return self._windows(text, count, length, generator)

    def _windows(self, text: str, count: int, length: int, generator: torch.Generator | None) -> list[Sample]:
        ids = token_ids(self._need_tokenizer(), text)
        windows = token_windows(ids, length=self._bounded(length), count=count, generator=generator)
        return [{"input_ids": w["input_ids"][0], "labels": w["input_ids"][0]} for w in windows]

    def text_batches(
        self, text: str, *, count: int, length: int, generator: torch.Generator | None = None
    ) -> list[Batch]:
        """As :meth:`batches`, of a text."""
        return self._batched(self._windows(text, count, length, generator))

    def _read(
        self, source: str | Path, count: int, length: int, generator: torch.Generator | None, *, labeled: bool
    ) -> list[Sample]:
        path = Path(source)
        if path.suffix.lower() == ".safetensors":
            return self._tensors(path, count, generator, labeled=labeled)
        if is_text(path):
            if labeled:
                self._check_own_labels(f"text file {path}")
            return self._windows(read_text(path), count, length, generator)
        rows, column = read_rows(str(source), count, generator)
        return self._encode(rows, column, self._bounded(length), str(source), labeled=labeled)

    @property
    def _predicts_tokens(self) -> bool:
        """Whether it may be a causal language model: not an encoder-decoder, and not named after another task."""
        other = self._labels_tokens or "Classification" in type(base_model(self.model)).__name__
        return not self._is_encoder_decoder and not other

    @property
    def _labels_tokens(self) -> bool:
        """Whether it has labels of its own for tokens or places, by its name."""
        return any(task in type(base_model(self.model)).__name__ for task in TOKEN_TASKS)

    def _check_own_labels(self, what: str, found: object = None) -> None:
        """Tokens are labels of their own only for a model that reads none of them before it predicts it."""
        if self._predicts_tokens:
            return
        do = TOKEN_LABELS if self._labels_tokens else "Give rows with text and label."
        if self._is_encoder_decoder and self.model.can_generate():  # type: ignore[operator]
            do = "Give rows with prompt and completion."
        raise CalibrationError(f"{what} has no labels for {type(self.model).__name__}", found=found, do=do)

    def _check_takes_classes(self, source: str, found: object) -> None:
        """The labels of a model that writes text are tokens, and so are those of some that read it."""
        model: Any = base_model(self.model)
        writes = hasattr(model, "can_generate") and model.can_generate()
        if writes or self._labels_tokens:
            do = "Leave the column label out, give rows with prompt and completion, or train a classifier."
            raise CalibrationError(
                f"columns of {source}",
                found=found,
                expected=f"no label, which is for a classifier and not for {type(model).__name__}",
                do=do if writes else TOKEN_LABELS,
            )

    @property
    def _is_encoder_decoder(self) -> bool:
        return bool(getattr(getattr(self.model, "config", None), "is_encoder_decoder", False))

    def _bounded(self, length: int) -> int:
        # a tokenizer may know better: RoBERTa's position embeddings have two more rows than it can read tokens
        limits = (context_length(self.model), getattr(self.tokenizer, "model_max_length", None))
        return min([length, *(limit for limit in limits if limit is not None)])

    def _need_tokenizer(self) -> Any:
        reads = getattr(self.model, "main_input_name", "input_ids")
        if reads != "input_ids":
            raise CalibrationError(
                f"{type(self.model).__name__} reads {reads}, not text",
                do=f"Give a .safetensors file with {reads}, and labels, one sample per row.",
            )
        if self.tokenizer is None:
            raise CalibrationError(
                "this model has no tokenizer, so it cannot read text",
                do="Give a .safetensors file with the model's inputs, one sample per row.",
            )
        return self.tokenizer

    def _tensors(self, path: Path, count: int, generator: torch.Generator | None, *, labeled: bool) -> list[Sample]:
        try:
            columns = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CalibrationError(f"cannot read the samples in {path}", found=error) from error
        rows = {tensor.shape[0] if tensor.ndim else 0 for tensor in columns.values()}
        if len(rows) != 1 or 0 in rows:
            shapes = {name: tuple(tensor.shape) for name, tensor in columns.items()}
            raise CalibrationError(f"tensors of {path}", found=shapes, expected="one row per sample in each")
        if (total := rows.pop()) > count:
            kept = drawn(total, count, generator)
            columns = {name: tensor[kept] for name, tensor in columns.items()}
        for name in {"input_ids", "labels"} & columns.keys():
            if not columns[name].is_floating_point():
                columns[name] = columns[name].long()  # losses of classes and embeddings want no other whole numbers
        if "input_ids" in columns:
            self._check_ids(columns, path)
            real = columns.get("attention_mask", torch.ones_like(columns["input_ids"])) != 0
            if labeled and "labels" not in columns:
                self._check_own_labels(str(path), sorted(columns))
            columns.setdefault("labels", columns["input_ids"].masked_fill(~real, IGNORED))
            if columns["labels"].ndim == 1:
                self._check_padding(len(real))
        labels = columns.get("labels", torch.empty(0))
        is_column = labels.ndim == 2 and labels.shape[1] == 1 and not labels.is_floating_point()
        if is_column and not self._predicts_tokens and not self._is_encoder_decoder:
            raise CalibrationError(
                f"labels in {path}", found=f"shape {tuple(labels.shape)}", expected=f"shape {(len(labels),)}"
            )
        return self._arranged(columns)

    def _check_ids(self, columns: Mapping[str, Tensor], path: Path) -> None:
        ids = columns["input_ids"]
        words = getattr(getattr(self.model, "config", None), "vocab_size", None)
        if isinstance(words, int) and (ids.is_floating_point() or not 0 <= int(ids.min()) <= int(ids.max()) < words):
            found = f"{ids.min().item()} to {ids.max().item()}"
            raise CalibrationError(f"input_ids in {path}", found=found, expected=f"whole numbers from 0 to {words - 1}")
        limit = context_length(self.model)
        if limit is not None and ids.shape[-1] > limit:
            found = f"{ids.shape[-1]} tokens per sample"
            raise CalibrationError(
                f"input_ids in {path}", found=found, expected=f"at most {limit}, the model's context"
            )
        mask = columns.get("attention_mask", ids)
        if mask.shape != ids.shape:
            found, expected = f"shape {tuple(mask.shape)}", f"shape {tuple(ids.shape)}, that of input_ids"
            raise CalibrationError(f"attention_mask in {path}", found=found, expected=expected)

    def _arranged(self, columns: Mapping[str, Tensor]) -> list[Sample]:
        """Rows of columns as the model takes them: a plain module with one input takes it by place, not by name."""
        inputs = [name for name in columns if name != "labels"]
        if len(inputs) == 1 and inputs != ["input_ids"] and not hasattr(self.model, "config"):
            order = [inputs[0], *(["labels"] if "labels" in columns else [])]
            return [tuple(row) for row in zip(*(columns[name] for name in order), strict=True)]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _batched(self, samples: Sequence[Sample]) -> list[Batch]:
        return [self._inputs(samples[start : start + BATCH_SIZE]) for start in range(0, len(samples), BATCH_SIZE)]

    def _inputs(self, samples: Sequence[Sample]) -> Batch:
        if not isinstance(samples[0], Mapping):
            return torch.stack([sample[0] for sample in samples])  # type: ignore[index]
        names = [name for name in samples[0] if name != "labels" or self._is_encoder_decoder]
        return {name: torch.stack([sample[name] for sample in samples]) for name in names}  # type: ignore[call-overload]

    def _encode(
        self, rows: Sequence[Row], column: LabelColumn, length: int, source: str, *, labeled: bool
    ) -> list[Sample]:
        have = rows[0].keys()
        is_pair = {"prompt", "completion"} <= have
        plain = "text" in have and not have & {"label", "image"}
        if labeled and (plain or ((is_pair or "messages" in have) and not self._is_encoder_decoder)):
            self._check_own_labels(source, sorted(have))
        if "messages" in have:
            return self._padded([self._chat(row["messages"], length, source) for row in rows], source)
        if is_pair:
            return self._padded([self._completion(row, length, source) for row in rows], source)
        if labeled and "label" in have:
            self._check_takes_classes(source, sorted(have))
        if "image" in have:
            return self._arranged(self._images(rows, column, source, labeled=labeled))
        if {"text", "label"} <= have:
            return self._classified(rows, column, length, source, labeled=labeled)
        if "text" in have:
            return self._padded([_whole(self._need_tokenizer(), row["text"], length) for row in rows], source)
        raise CalibrationError(f"columns of {source}", found=sorted(have), expected=FORMS)

    def _chat(self, messages: Any, length: int, source: str) -> tuple[list[int], list[int]]:
        """Token ids of a conversation, and labels on the assistant's turns."""
        tokenizer = self._need_tokenizer()
        if self._is_encoder_decoder:
            raise CalibrationError(
                f"{source} holds chats and the model is an encoder-decoder", do="Give rows with prompt and completion."
            )
        if not getattr(tokenizer, "chat_template", None):
            raise CalibrationError(
                f"{source} holds chats and the model's tokenizer has no chat template",
                do="Use a chat model, or rows with prompt and completion.",
            )

        _check_messages(messages, source)
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            raise CalibrationError(f"a chat of {source}", found="no turn of the assistant", expected="at least one")
        cuts = [cut for number in answers for cut in ((number, True), (number + 1, False))]
        text, *parts = render_cuts(tokenizer, messages, [(len(messages), False), *cuts], f"a chat of {source}")
        for number, before, until in zip(answers, parts[::2], parts[1::2], strict=True):
            if not text.startswith(before) or not text.startswith(until):
                raise CalibrationError(
                    f"the chat template writes turn {number + 1} of {source} differently when more turns follow",
                    do="Give one answer per row, as prompt and completion.",
                )
        spans = [(len(before), len(until)) for before, until in zip(parts[::2], parts[1::2], strict=True)]
        return _labeled(tokenizer, text, spans, length)

    def _completion(self, row: Row, length: int, source: str) -> tuple[list[int], list[int]]:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            return self._chat([*prompt, *completion], length, source)
        if not (isinstance(prompt, str) and isinstance(completion, str)):
            raise CalibrationError(
                f"a row of {source}",
                found=f"a prompt of type {type(prompt).__name__}, a completion of type {type(completion).__name__}",
                expected="two texts, or two lists of messages",
            )
        tokenizer = self._need_tokenizer()
        if self._is_encoder_decoder:
            options = {"truncation": True, "max_length": length}
            return tokenizer(prompt, **options)["input_ids"], tokenizer(text_target=completion, **options)["input_ids"]
        end = tokenizer.eos_token or ""
        start = start_ids(tokenizer)
        span = (len(prompt), len(prompt + completion + end))
        ids, labels = _labeled(tokenizer, prompt + completion + end, [span], length)
        added = [] if ids[: len(start)] == start else start
        return [*added, *ids][:length], [*([IGNORED] * len(added)), *labels][:length]

    def _padded(self, encoded: Sequence[tuple[list[int], list[int]]], source: str) -> list[Sample]:
        """Samples of one length; padding is masked and has no label. Rows that lack tokens are nothing but padding."""
        encoded = [row if all(row) else ([], []) for row in encoded]
        if not any(map(any, encoded)):
            raise CalibrationError(f"rows of {source}", found="no tokens", expected="text")
        width, widest = (max(map(len, column)) for column in zip(*encoded, strict=True))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        return [
            {
                "input_ids": torch.tensor(ids + [pad or 0] * (width - len(ids))),
                "attention_mask": torch.tensor([1] * len(ids) + [0] * (width - len(ids))),
                "labels": torch.tensor(labels + [IGNORED] * (widest - len(labels))),
            }
            for ids, labels in encoded
        ]

    def _classified(
        self, rows: Sequence[Row], column: LabelColumn, length: int, source: str, *, labeled: bool
    ) -> list[Sample]:
        words = [row["text"] for row in rows]
        tokenizer = self._need_tokenizer()
        if tokenizer.pad_token_id is None:
            raise CalibrationError(
                "the model's tokenizer has no padding token, so it cannot batch texts",
                do="Set pad_token of the tokenizer and pad_token_id of the model's configuration, and save both.",
            )
        self._check_padding(len(words))
        columns = dict(tokenizer(words, truncation=True, padding=True, max_length=length, return_tensors="pt"))
        return self._arranged(columns | ({"labels": self._labels(rows, column, source)} if labeled else {}))

    def _check_padding(self, rows: int) -> None:
        """A decoder classifies by its last token, and finds it by the padding behind it."""
        config: Any = getattr(self.model, "config", None)
        if rows < 2 or config is None or self._is_encoder_decoder or self._predicts_tokens:
            return
        forward = inspect.signature(base_model(self.model).forward)
        if {"cache", "past_key_values"} & forward.parameters.keys() and getattr(
            _text_config(config), "pad_token_id", None
        ) is None:
            raise CalibrationError(
                f"{type(self.model).__name__} has no pad_token_id in its configuration, so it cannot classify batches",
                do="Set pad_token_id in its config.json to the id of the tokenizer's pad_token.",
            )

    def _images(self, rows: Sequence[Row], column: LabelColumn, source: str, *, labeled: bool) -> dict[str, Tensor]:
        if self.processor is None:
            raise CalibrationError(
                f"{source} holds images and the model has no image processor",
                do="Put its preprocessor_config.json into the model's folder, or give tensors as .safetensors.",
            )
        means = getattr(self.processor, "image_mean", None)
        channels = getattr(getattr(self.model, "config", None), "num_channels", None)
        mode = "L" if channels == 1 or (isinstance(means, (list, tuple)) and len(means) == 1) else "RGB"
        pictures = [picture(row["image"], mode, source) for row in rows]
        pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        columns = {"pixel_values": pixels}
        if labeled and "label" in rows[0]:
            columns["labels"] = self._labels(rows, column, source)
        return columns

    def _labels(self, rows: Sequence[Row], column: LabelColumn, source: str) -> Tensor:
        labels = [row["label"] for row in rows]
        if is_regression(self.model):
            return self._targets(labels, column.names, source)
        return self._classes(labels, column, source)

    def _targets(self, labels: Sequence[Any], names: Sequence[str] | None, source: str) -> Float[Tensor, "rows ..."]:
        """Labels as real numbers, also the names of folders; lists of them where the model has several outputs."""
        if names is not None:
            labels = [names[label] if isinstance(label, int) else label for label in labels]
        try:
            targets = torch.tensor([_numbers(label) for label in labels])
        except (TypeError, ValueError):
            targets = torch.tensor(float("nan"))
        config: Any = self.model.config
        outputs = int(config.num_labels)
        allowed = [(outputs,)] if outputs > 1 else [(), (1,)]
        if not bool(targets.isfinite().all()) or tuple(targets.shape[1:]) not in allowed:
            expected = "a finite number" if outputs == 1 else f"{outputs} finite numbers"
            raise CalibrationError(
                f"labels of {source}", found=[*labels][:3], expected=f"{expected} in every row, for a regression"
            )
        return targets

    def _classes(self, labels: Sequence[Any], column: LabelColumn, source: str) -> Int[Tensor, "rows"]:
        """Labels as the model's class indices: by the model's names where all rows have such, else as numbers."""
        config, names = getattr(self.model, "config", None), column.names
        expected = "class indices 0, 1, 2, ..."
        wrong = [label for label in labels if not _is_class(label, names)]
        if wrong:
            raise CalibrationError(f"labels of {source}", found=wrong[:3], expected=f"{expected} or class names")
        known = {str(name): int(index) for index, name in (getattr(config, "id2label", None) or {}).items()}
        words = [_word(label, names) for label in labels]
        numbers = [label if isinstance(label, bool) else word for label, word in zip(labels, words, strict=True)]
        # whether labels are names is said by all rows: of those that are drawn, 1 and 2 may be both
        all_named = _indices([_word(label, names) for label in column.values], known) is not None
        found = _indices(words, known) if all_named else None
        if found is None and all(isinstance(number, bool) or _is_whole(number) for number in numbers):
            found = [int(number) for number in numbers]
        if found is None and names is not None and all(name == f"LABEL_{index}" for name, index in known.items()):
            found = _indices(words, {name: index for index, name in enumerate(names)})
        if found is None:
            folded = {name.casefold() for name in known}
            unknown = {word for word in words if word.casefold() not in folded}
            raise CalibrationError(
                f"labels of {source}",
                found=sorted(unknown or {*words})[:3],
                expected=f"{expected} or the model's class names {sorted(known)[:5]}",
            )
        indices = torch.tensor(found)
        width = getattr(config, "num_labels", None)
        if bool((indices < 0).any()) or (width is not None and int(indices.max()) >= width):
            expected = expected if width is None else f"0 to {width - 1}"
            raise CalibrationError(f"labels of {source}", found=sorted(set(indices.tolist()))[-3:], expected=expected)
        return indices


def context_length(model: nn.Module) -> int | None:
    """The most tokens a model can read at once, as its configuration says; None where it says nothing.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(n_embd=4, n_layer=1, n_head=1, vocab_size=8, n_positions=16)
    >>> context_length(GPT2LMHeadModel(config))
    16
    """
    config = _text_config(getattr(model, "config", None))
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((length for length in found if isinstance(length, int) and length > 0), None)


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _whole(tokenizer: Any, text: str, length: int) -> tuple[list[int], list[int]]:
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    start = start_ids(tokenizer)
    ids = (ids if not ids or ids[: len(start)] == start else start + ids)[:length]
    return ids, list(ids)


def _counts(sample: Sample, first: int) -> bool:
    """Whether the loss counts any of a sample's tokens; samples with one label or none do."""
    labels = sample.get("labels") if isinstance(sample, Mapping) else None
    return labels is None or labels.ndim == 0 or labels.is_floating_point() or bool((labels[first:] != IGNORED).any())


def _has_tokens(sample: Sample) -> bool:
    mask = sample.get("attention_mask") if isinstance(sample, Mapping) else None
    return mask is None or bool(mask.any())


def _check_messages(messages: Any, source: str) -> None:
    listed = isinstance(messages, list) and messages and all(isinstance(message, Mapping) for message in messages)
    if not listed:
        raise CalibrationError(f"a chat of {source}", found=repr(messages)[:60], expected="a list of messages")
    for message in messages:
        says = message.get("content") is not None or message.get("tool_calls")
        if not isinstance(message.get("role"), str) or not says:
            raise CalibrationError(
                f"a message of {source}", found=repr(dict(message))[:99], expected="'role' and 'content'"
            )


def _numbers(label: Any) -> Any:
    return [float(each) for each in label] if isinstance(label, (list, tuple)) else float(label)


def _word(label: Any, names: Sequence[str] | None) -> str:
    """A label as a word: its name where labels are numbers of names."""
    if names is not None and isinstance(label, int) and 0 <= label < len(names):
        return names[label]
    return str(int(label)) if isinstance(label, float) and math.isfinite(label) else str(label)


def _is_whole(word: str) -> bool:
    return word.removeprefix("-").isdecimal()


def _indices(words: Sequence[str], known: Mapping[str, int]) -> list[int] | None:
    """The numbers of names, also of names in another case; None if not all are known."""
    for fold in (str, str.casefold):
        order = {fold(name): index for name, index in known.items()}
        if len(order) == len(known) and all(fold(word) in order for word in words):
            return [order[fold(word)] for word in words]
    return None


def _is_class(label: Any, names: Sequence[str] | None) -> bool:
    """Whether a label can be a class: a word, or a whole number that has a name where there are names."""
    if isinstance(label, int) and names is not None:
        return 0 <= label < len(names)
    return isinstance(label, (int, str)) or (isinstance(label, float) and label.is_integer())


def _labeled(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]], length: int) -> tuple[list[int], list[int]]:
    """Token ids of a text, and labels on the tokens that reach into one of the spans of characters."""
    if not tokenizer.is_fast:
        raise CalibrationError(
            f"{type(tokenizer).__name__} does not say where its tokens begin",
            expected="a fast tokenizer (tokenizer.json), to tell answers from prompts",
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = encoded["input_ids"][:length]
    places = encoded["offset_mapping"][:length]
    # a token of the prompt's last space and the answer's first word is the answer's
    inside = [any(begin < high and end > low for low, high in spans) for begin, end in places]
    return list(ids), [token if kept else IGNORED for token, kept in zip(ids, inside, strict=True)]
