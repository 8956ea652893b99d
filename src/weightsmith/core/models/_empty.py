"""Build a model without memory from a changed configuration, to see what the configuration describes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["build_empty", "config_fields"]


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

    config: PretrainedConfig = copy.deepcopy(model.config)
    try:
        for name, value in fields.items():
            setattr(config, name, value)
        names = {name for name, _ in config_fields(config)}
        # lists that are computed from fields are computed anew
        stated = {n: v for n, v in config.to_dict().items() if n in names or not isinstance(v, list)}
        with init_empty_weights(include_buffers=False):
            built: PreTrainedModel = type(model)(type(config).from_dict(stated))
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
