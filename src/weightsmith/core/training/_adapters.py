"""Models that carry adapters of PEFT, which methods that change the base weights refuse."""

from __future__ import annotations

from torch import nn

from weightsmith.core.errors import UnsupportedModelError

__all__ = ["refuse_adapters"]


def refuse_adapters(model: nn.Module) -> None:
    """Refuse a model with adapters: only these would be trained, or its base weights would change under them.

    Raises
    ------
    UnsupportedModelError
        If the model has adapters.

    Examples
    --------
    >>> refuse_adapters(nn.Linear(2, 2))
    """
    layers = [name for name, module in model.named_modules() if "base_layer" in module._modules]
    if layers or hasattr(model, "peft_config"):
        raise UnsupportedModelError(
            "the model has adapters already",
            found=f"{len(layers)} adapted layers such as {layers[:1]}",
            do="Merge them first (model = model.merge_and_unload()), or unload them.",
        )
