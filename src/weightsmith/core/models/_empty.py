"""What a configuration describes: a model without memory, its fields, and a batch that the model takes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from weightsmith.core.errors import UnsupportedModelError

__all__ = ["build_empty", "config_fields", "example_batch"]

SIDE = 224
"""Image size for networks whose configuration names none."""


def build_empty(model: PreTrainedModel, fields: Mapping[str, Any]) -> PreTrainedModel | str:
    """Return a model without memory from the configuration as it would be read from a file, or why there is none.

    Parameters
    ----------
    model : PreTrainedModel
        Its class and configuration are taken; it does not change.
    fields : mapping of str to object
        Fields of the configuration with other values.

    Examples
    --------
    >>> from weightsmith.testing import tiny
    >>> build_empty(tiny("llama")[0], {"intermediate_size": 48}).model.layers[0].mlp.down_proj.weight.shape
    torch.Size([32, 48])
    """
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    config: PretrainedConfig = copy.deepcopy(model.config)
    try:
        for name, value in fields.items():
            setattr(config, name, value)
        names = {name for name, _ in config_fields(config)}
        # lists that are computed from fields are computed anew
        stated = {n: v for n, v in config.to_dict().items() if n in names or not isinstance(v, list)}
        # some models (ViT) draw a tensor before it becomes a parameter on the meta device
        with init_empty_weights(include_buffers=False), no_init_weights(), torch.random.fork_rng(devices=[]):
            built: PreTrainedModel = type(model)(type(config).from_dict(stated))
        built.tie_weights()  # which the initialization would have done
    except (StrictDataclassError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return built


def config_fields(config: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over the fields that a configuration is made from, with their values.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> dict(config_fields(LlamaConfig(intermediate_size=48)))["intermediate_size"]
    48
    """
    for name in inspect.signature(type(config)).parameters:
        yield name, getattr(config, name, None)


def example_batch(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return one short sample that a Hugging Face model takes, for tracing it without data.

    Parameters
    ----------
    model : PreTrainedModel
        A model of tokens or of images; also on the meta device.

    Returns
    -------
    dict of str to Tensor
        Token ids of shape (1, tokens), or an image of zeros of shape (1, channels, height, width).

    Raises
    ------
    UnsupportedModelError
        If the model takes neither.

    Examples
    --------
    >>> from weightsmith.testing import tiny
    >>> {name: value.shape for name, value in example_batch(tiny("vit")[0]).items()}
    {'pixel_values': torch.Size([1, 3, 32, 32])}
    """
    if model.main_input_name == "pixel_values":
        config: Any = model.config
        size, channels = getattr(config, "image_size", SIDE), getattr(config, "num_channels", 3)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return {"pixel_values": torch.zeros(1, channels, height, width)}
    if model.main_input_name != "input_ids":
        raise UnsupportedModelError(
            f"{type(model).__name__} takes neither tokens nor images",
            found=model.main_input_name,
            do="Load the model into memory for this method.",
        )
    batch = {name: value[:1] for name, value in model.dummy_inputs.items()}
    # some models, such as BART, make theirs on their own device, where they have no values
    return {name: torch.ones_like(value, device="cpu") if value.is_meta else value for name, value in batch.items()}
