"""Make a parametrised model an ordinary one."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

__all__ = ["fold_parametrizations"]


@torch.no_grad()
def fold_parametrizations(model: nn.Module) -> None:
    """Replace every parametrised tensor of a model by the value it has now.

    Parameters
    ----------
    model : nn.Module
        Changed in place; its parameters are new and its own.

    Notes
    -----
    ``torch.nn.utils.parametrize.remove_parametrizations`` takes the tensor's property from the module's class, which
    deep copies of the module share: they lose it too. Here the module goes back to the class it had before.

    Examples
    --------
    >>> layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    >>> fold_parametrizations(layer)
    >>> layer.__class__.__name__, sorted(layer.state_dict())
    ('Linear', ['bias', 'weight'])
    """
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module):
            continue
        values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore[union-attr]
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        kept = dict(module._parameters)
        module._parameters.clear()
        for name in sorted({*values, *kept}, reverse=True):  # a weight before its bias, as layers have them
            module.register_parameter(name, nn.Parameter(values[name]) if name in values else kept[name])
