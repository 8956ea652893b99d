"""What a model is run on: batches for calibration and measures, samples for training.

Both are what PyTorch users already have: mappings of keyword arguments, single tensors, ``(inputs, labels)`` pairs, a
list of these, a data set, or a ``DataLoader``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from weightsmith.core.caller import callers_settings
from weightsmith.core.errors import CalibrationError
from weightsmith.core.processes import base_model, plain_model

__all__ = [
    "IGNORED",
    "Batch",
    "Batches",
    "Sample",
    "Samples",
    "as_batches",
    "batched",
    "call",
    "check_samples",
    "collate",
    "in_model_dtype",
    "is_regression",
    "keywords",
    "map_tensors",
    "pad_token_id",
    "read",
    "split_labels",
    "take",
    "to_device",
    "to_model",
    "token_positions",
    "without_labels",
]

IGNORED = -100
"""The label of a position that does not count."""

PADDING = {"attention_mask": 0, "decoder_attention_mask": 0, "token_type_ids": 0, "position_ids": 0, "labels": IGNORED}
"""What sequences of tokens are padded with, beside token ids."""

_FIRST: WeakKeyDictionary[nn.Module, int | None] = WeakKeyDictionary()
"""Of models that were called: see :func:`_first_position`."""

Batch: TypeAlias = Mapping[str, Any] | Tensor | tuple[Any, ...] | list[Any]
"""Keyword arguments of the model, its only argument, its positional arguments, or ``(inputs, labels)``.

What a pair is follows from the model, see :func:`call`; a mapping says it by name.
"""

Batches: TypeAlias = Sequence[Batch] | DataLoader[Any]
"""A list of batches, or a loader that makes them."""

Sample: TypeAlias = Mapping[str, Tensor] | tuple[Any, ...]
"""One sample: keyword arguments such as ``{"input_ids": LongTensor[L], "labels": ...}``, or ``(input, label)``."""


@runtime_checkable
class Samples(Protocol):
    """Anything with a length and a :data:`Sample` at each index: a list, or a map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def as_batches(batches: Batches) -> list[Batch]:
    """Return batches as a list, so that they can be counted and gone over more than once.

    Raises
    ------
    CalibrationError
        If there are none, or one has no rows or holds NumPy arrays.

    Examples
    --------
    >>> loader = DataLoader(torch.arange(5.0), batch_size=2)
    >>> [len(batch) for batch in as_batches(loader)]
    [2, 2, 1]
    """
    listed = list(batches)
    if not listed:
        raise CalibrationError("no calibration batches", expected="at least one")
    for number, batch in enumerate(listed):
        _check_batch(batch, f"calibration batch {number}")
    return listed


def _check_batch(batch: Any, what: str) -> None:
    values = list(_values(batch))
    if any(isinstance(value, np.ndarray) for value in values):
        raise CalibrationError(what, found="a NumPy array", expected="tensors", do="Convert it with torch.from_numpy.")
    shapes = [tuple(value.shape) for value in values if isinstance(value, Tensor)]
    if shapes and all(0 in shape for shape in shapes):
        raise CalibrationError(what, found=f"shape {shapes[0]}", expected="at least one row", do="Leave it out.")


def _values(batch: Any) -> Iterator[Any]:
    if isinstance(batch, (Mapping, tuple, list)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _values(value)
    else:
        yield batch


def check_samples(samples: Any) -> None:
    """Check that samples can be counted and gone over more than once, which those of a generator cannot.

    Raises
    ------
    CalibrationError
        If they cannot.

    Examples
    --------
    >>> check_samples([(1.0, 0)])
    """
    if not isinstance(samples, Samples):
        raise CalibrationError(
            "samples", found=f"a {type(samples).__name__}", expected="a list or data set", do="Make a list of it."
        )


def take(samples: Samples, start: int = 0, stop: int | None = None) -> list[Any]:
    """Return some of the samples, as slicing a list does.

    Raises
    ------
    CalibrationError
        As :func:`check_samples`.

    Examples
    --------
    >>> take([(1.0, 0), (2.0, 1), (3.0, 0)], 1)
    [(2.0, 1), (3.0, 0)]
    """
    check_samples(samples)
    return read(samples, range(*slice(start, stop).indices(len(samples))))


def read(samples: Samples, places: Iterable[int]) -> list[Any]:
    """Return the samples at some places, with the settings that the caller's data set was written for.

    Examples
    --------
    >>> read([(1.0, 0), (2.0, 1), (3.0, 0)], [2, 0])
    [(3.0, 0), (1.0, 0)]
    """
    with callers_settings():
        return [samples[place] for place in places]


def batched(samples: Samples, batch_size: int, *, pad_token_id: int = 0) -> list[Batch]:
    """Collate samples into batches, in order; the last one may be smaller.

    Raises
    ------
    CalibrationError
        If there are no samples, or :func:`check_samples` or :func:`collate` refuses them.

    Examples
    --------
    >>> [batch[1].tolist() for batch in batched([(torch.ones(2), n) for n in range(3)], 2)]
    [[0, 1], [2]]
    """
    check_samples(samples)
    if len(samples) == 0:
        raise CalibrationError("no samples", expected="at least one")
    starts = range(0, len(samples), batch_size)
    return [collate(take(samples, start, start + batch_size), pad_token_id=pad_token_id) for start in starts]


def collate(samples: Sequence[Any], *, pad_token_id: int = 0) -> Any:
    """Make one batch of samples, as :func:`torch.utils.data.default_collate`, and pad sequences of tokens.

    In mappings, sequences of unequal length are padded on the right: token ids with ``pad_token_id``, ``labels`` with
    -100, attention masks with 0. An attention mask is added if there is none.

    Parameters
    ----------
    samples : sequence
        Mappings of tensors, tuples such as ``(input, label)``, or tensors.
    pad_token_id : int, default: 0
        The model's, see :func:`pad_token_id`.

    Raises
    ------
    CalibrationError
        If other shapes, or the names of the samples, differ.

    Examples
    --------
    >>> batch = collate([{"input_ids": torch.tensor([5, 6])}, {"input_ids": torch.tensor([7])}])
    >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist()
    ([[5, 6], [7, 0]], [[1, 1], [1, 0]])
    """
    first = samples[0]
    if isinstance(first, Mapping):
        for number, sample in enumerate(samples):
            if not isinstance(sample, Mapping) or sample.keys() != first.keys():
                found = sorted(sample) if isinstance(sample, Mapping) else type(sample).__name__
                raise CalibrationError(f"sample {number} of a batch", found=found, expected=sorted(first))
        columns = {name: [_tensor(name, sample[name]) for sample in samples] for name in first}
        return _masks(columns) | {name: _stack(name, values, pad_token_id) for name, values in columns.items()}
    if isinstance(first, (tuple, list)):
        if any(not isinstance(sample, (tuple, list)) or len(sample) != len(first) for sample in samples):
            raise CalibrationError("samples of a batch", found="tuples of unequal length", expected="one length")
        return [collate(values, pad_token_id=pad_token_id) for values in zip(*samples, strict=True)]
    return _stack("the inputs", samples, pad_token_id)


def split_labels(batch: Batch) -> tuple[Batch, Tensor]:
    """Take a batch apart into the model's inputs and the labels.

    Raises
    ------
    CalibrationError
        If it is neither a mapping with ``labels`` nor a pair, or the labels are words.

    Examples
    --------
    >>> inputs, labels = split_labels({"input_ids": torch.ones(2, 3), "labels": torch.tensor([0, 1])})
    >>> list(inputs), labels.tolist()
    (['input_ids'], [0, 1])
    """
    if isinstance(batch, Mapping) and "labels" in batch:
        inputs, labels = {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, labels = batch
    else:
        found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise CalibrationError("a batch without labels", found=found, expected="a mapping with 'labels', or a pair")
    if isinstance(labels, (tuple, list)) and any(isinstance(label, str) for label in labels):
        raise CalibrationError("labels", found=labels[:3], expected="numbers", do="Number the classes 0, 1, 2, ...")
    return inputs, labels


def pad_token_id(model: nn.Module) -> int:
    """Return the token that a model's configuration pads with; 0 if it names none.

    Examples
    --------
    >>> pad_token_id(nn.Identity())
    0
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(config, "pad_token_id", None)
    return found if isinstance(found, int) and found >= 0 else 0


def is_regression(model: nn.Module) -> bool:
    """Whether a model's configuration says that its labels are real numbers.

    Examples
    --------
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> is_regression(ViTForImageClassification(ViTConfig(num_hidden_layers=1, num_labels=1)))
    True
    """
    config: Any = getattr(model, "config", None)
    kind, count = (getattr(config, name, None) for name in ("problem_type", "num_labels"))
    return bool(kind == "regression" or (count == 1 and kind is None))


def without_labels(model: nn.Module, batch: Batch) -> Batch:
    """Return a batch's inputs.

    An encoder-decoder without decoder inputs in the batch keeps the labels: it makes its decoder inputs of them.

    Examples
    --------
    >>> x, y = torch.ones(3, 2), torch.tensor([0, 1, 0])
    >>> without_labels(nn.Linear(2, 2), (x, y)) is x, list(without_labels(nn.Identity(), {"x": x, "labels": y}))
    (True, ['x'])
    """
    if isinstance(batch, Mapping):
        config = getattr(plain_model(model), "config", None)
        if getattr(config, "is_encoder_decoder", False) and not batch.keys() & {
            "decoder_input_ids",
            "decoder_inputs_embeds",
        }:
            return batch
        return {name: value for name, value in batch.items() if name != "labels"}
    return batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch


def call(model: nn.Module, batch: Batch) -> Any:
    """Call a model with a batch: a mapping as keyword arguments, a tuple or list as positional ones.

    A pair is taken as ``(inputs, labels)``, of which the model gets the inputs, where the second element

    - has no place in ``model.forward``;
    - is optional in ``forward``, and is one whole number per row of inputs that are real numbers; or
    - goes with a Hugging Face model, or one whose second argument is an optional ``attention_mask``. Beside token ids
      it must then be one number per row: any other tensor could be an attention mask as well, and is refused.

    Any other pair is two positional arguments.

    Real numbers are cast to the data type of the model's weights.

    Tokens keep their positions where padding comes before them: ``position_ids`` are counted from the attention mask,
    as ``generate`` does, for models that take them.

    Raises
    ------
    CalibrationError
        If the second of a pair can be labels or an attention mask.

    Examples
    --------
    >>> x, y = torch.ones(3, 2), torch.tensor([0, 1, 0])
    >>> call(nn.Linear(2, 4), (x, y)).shape
    torch.Size([3, 4])
    >>> call(nn.Bilinear(2, 2, 4), (x, x)).shape
    torch.Size([3, 4])
    """
    if isinstance(batch, (tuple, list)) and _is_labeled(model, batch):
        _refuse_masks(model, *batch)
        batch = batch[0]
    batch = in_model_dtype(batch, model)
    with callers_settings():
        if isinstance(batch, Mapping):
            return model(**keywords(model, batch))
        return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def keywords(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what :func:`call` calls a model with: a batch, and the positions that :func:`token_positions` counts.

    Examples
    --------
    >>> keywords(nn.Identity(), {"input": 3})
    {'input': 3}
    """
    mask = None if "position_ids" in batch else batch.get("attention_mask")
    return {**batch, **({} if mask is None else token_positions(model, mask))}


def token_positions(model: nn.Module, mask: Tensor) -> dict[str, Tensor]:
    """Return ``position_ids`` for a batch with padding on the left, where the model would count the padding.

    Parameters
    ----------
    model : nn.Module
        Any model.
    mask : Tensor of shape (samples, tokens)
        Its attention mask; one of another number of dimensions says nothing of padding.

    Returns
    -------
    dict
        Empty where there is nothing to add: no padding on the left, or a model that takes no positions, depends on
        their differences only, or counts the tokens itself.

    Examples
    --------
    >>> from weightsmith.testing import tiny
    >>> token_positions(tiny("gpt2")[0], torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]))["position_ids"].tolist()
    [[0, 0, 0, 1], [0, 1, 2, 3]]
    """
    plain = base_model(model)
    first = _FIRST[plain] if plain in _FIRST else _FIRST.setdefault(plain, _first_position(plain))
    if first is None or mask.ndim != 2 or bool(mask[:, 0].all()):
        return {}
    return {"position_ids": first + (mask.long().cumsum(1) - 1).clamp(min=0)}


def _first_position(model: nn.Module) -> int | None:
    """The number of the first token; None for a model that is to count its tokens itself."""
    if (
        getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        or "position_ids" not in inspect.signature(model.forward).parameters
    ):
        return None
    for name, module in model.named_modules():
        # rotary embeddings depend on differences of positions only, and in models of images have three of each;
        # RoBERTa and its kin number the tokens that are not padding
        if "Rotary" in type(module).__name__ or (
            name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        ):
            return None
    counts = [buffer for name, buffer in model.named_buffers() if name.endswith("position_ids") and not buffer.is_meta]
    return int(counts[0].min()) if counts else 0


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Return a batch with a function applied to each of its tensors; other values stay unchanged.

    Examples
    --------
    >>> map_tensors(torch.neg, [torch.ones(1), {"x": torch.ones(1), "n": 3}])
    [tensor([-1.]), {'x': tensor([-1.]), 'n': 3}]
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(function, value) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        values = [map_tensors(function, value) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch


def to_device(batch: Any, device: torch.device | str) -> Any:
    """Return a batch with all of its tensors on a device.

    Examples
    --------
    >>> to_device([torch.ones(1), {"x": torch.ones(1)}], "meta")[1]["x"].device
    device(type='meta')
    """
    return map_tensors(lambda tensor: tensor.to(device), batch)


def _masks(columns: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
    """Attention masks of the token ids that differ in length and have none."""
    masks = {}
    for stream in ("", "decoder_"):
        tokens, mask = columns.get(f"{stream}input_ids"), f"{stream}attention_mask"
        if tokens is not None and mask not in columns and len({tuple(ids.shape) for ids in tokens}) > 1:
            masks[mask] = _stack(mask, [torch.ones_like(ids) for ids in tokens], 0)
    return masks


def _tensor(name: str, value: Any) -> Any:
    """Lists of tokens, as tokenizers return them, as tensors."""
    return torch.tensor(value) if isinstance(value, list) and (name in PADDING or name.endswith("input_ids")) else value


def _stack(name: str, values: Sequence[Any], pad_token_id: int) -> Any:
    shapes = {tuple(value.shape) for value in values if isinstance(value, Tensor)}
    filler = pad_token_id if name.endswith("input_ids") else PADDING.get(name)
    tokens = all(isinstance(value, Tensor) and value.ndim == 1 and not value.is_floating_point() for value in values)
    if len(shapes) > 1 and filler is not None and tokens:
        return nn.utils.rnn.pad_sequence(list(values), batch_first=True, padding_value=filler)
    try:
        return default_collate(list(values))
    except (RuntimeError, TypeError) as error:
        found = sorted(shapes) if len(shapes) > 1 else sorted({type(value).__name__ for value in values})
        do = "Pad or crop them to one shape." if len(shapes) > 1 else None
        raise CalibrationError(f"{name} of a batch", found=found, expected="tensors of one shape", do=do) from error


def to_model(batch: Any, model: nn.Module) -> Any:
    """Return a batch on a model's device, its real numbers in the model's data type; on the CPU for a model on disk.

    Labels that are real numbers are in float32 where the model is in half precision: targets lose nothing.

    Examples
    --------
    >>> to_model([torch.ones(1), torch.tensor(0)], nn.Linear(1, 1).double())
    [tensor([1.], dtype=torch.float64), tensor(0)]
    >>> to_model([torch.ones(1), torch.tensor([0.3])], nn.Linear(1, 1).bfloat16())
    [tensor([1.], dtype=torch.bfloat16), tensor([0.3000])]
    """
    like = _weight(model)
    return batch if like is None else in_model_dtype(to_device(batch, "cpu" if like.is_meta else like.device), model)


def in_model_dtype(batch: Any, model: nn.Module) -> Any:
    """Return a batch as :func:`to_model` does, on the devices where it is.

    Examples
    --------
    >>> in_model_dtype({"x": torch.ones(1)}, nn.Linear(1, 1).double())
    {'x': tensor([1.], dtype=torch.float64)}
    """
    like = _weight(model)
    if like is None:
        return batch
    dtype = like.dtype
    wide = torch.promote_types(dtype, torch.float32)

    def cast(value: Any, dtype: torch.dtype) -> Any:
        return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, value)

    if isinstance(batch, Mapping):
        return {name: cast(value, wide if name == "labels" else dtype) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)) and _is_labeled(model, batch):
        values: Any = [in_model_dtype(batch[0], model), cast(batch[1], wide)]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return cast(batch, dtype)


def _weight(model: nn.Module) -> nn.Parameter | None:
    """The first parameter of real numbers, without scales beside them."""
    return next((p for p in model.parameters() if p.is_floating_point() and p.element_size() > 1), None)


def _is_labeled(model: nn.Module, batch: Sequence[Any]) -> bool:
    """Whether a batch is (inputs, labels): the rule of :func:`call`."""
    if len(batch) != 2:
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(base_model(model).forward).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return False
    places = [parameter for parameter in parameters if parameter.kind in kinds]
    if len(places) < 2:
        return True
    if places[1].default is inspect.Parameter.empty:
        return False
    inputs, second = batch
    return _may_take_a_mask(model) or (
        _is_real(inputs) and _is_one_per_row(inputs, second) and not second.is_floating_point()
    )


def _may_take_a_mask(model: nn.Module) -> bool:
    """Whether a model is one of Hugging Face, or one whose second argument is an attention mask."""
    base = base_model(model)
    return hasattr(base, "main_input_name") or [*inspect.signature(base.forward).parameters][1:2] == ["attention_mask"]


def _refuse_masks(model: nn.Module, inputs: Any, second: Any) -> None:
    """Refuse what comes with token ids and may be labels of tokens as well as an attention mask."""
    if not isinstance(inputs, Tensor) or _is_real(inputs) or not _may_take_a_mask(model):
        return
    if not _is_one_per_row(inputs, second):
        raise CalibrationError(
            "a pair whose second may be labels or an attention mask",
            found=f"shape {tuple(second.shape)}" if isinstance(second, Tensor) else type(second).__name__,
            expected="a mapping",
            do="Name them: {'input_ids': ..., 'attention_mask': ..., 'labels': ...}.",
        )


def _is_real(inputs: Any) -> bool:
    return isinstance(inputs, Tensor) and inputs.is_floating_point()


def _is_one_per_row(inputs: Tensor, labels: Any) -> bool:
    return isinstance(labels, Tensor) and labels.ndim == 1 and len(labels) == len(inputs)
