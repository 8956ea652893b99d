"""Make a parametrized model an ordinary one."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

__all__ = ["fold_parametrizations"]


@torch.no_grad()
def fold_parametrizations(model: nn.Module, kind: type[nn.Module] = nn.Module) -> list[nn.Module]:
    """Replace every parametrized tensor of a model by the value it has now.

    Parameters
    ----------
    model : nn.Module
        Changed in place; its parameters are new ones that no other module shares.
    kind : type, optional
        Fold only modules that have a parametrization of this type.

    Returns
    -------
    list of nn.Module
        The modules that were folded.

    Notes
    -----
    ``torch.nn.utils.parametrize.remove_parametrizations`` removes the tensor's property from the module's class. Deep
    copies of the module share this class and lose the property, too. Here the module returns to the class it had
    before, so copies stay intact.

    Examples
    --------
    >>> layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    >>> fold_parametrizations(layer)
    [Linear(in_features=3, out_features=3, bias=True)]
    >>> sorted(layer.state_dict())
    ['bias', 'weight']
    """
    folded = []
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module):
            continue
        held: nn.ModuleDict = module.parametrizations  # type: ignore[assignment]
        if not any(isinstance(part, kind) for chain in held.values() for part in chain):  # type: ignore[attr-defined]
            continue
        values = {name: _value(module, name) for name in held}
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        kept = dict(module._parameters)
        module._parameters.clear()
        for name in sorted({*values, *kept}, reverse=True):  # a weight before its bias, as layers have them
            module.register_parameter(name, values.get(name, kept.get(name)))
        folded.append(module)
    return folded


def _value(module: nn.Module, name: str) -> nn.Parameter:
    # what the weight is computed from; parameters of the parametrization, such as a step, are trained anyway
    originals = module.parametrizations[name].parameters(recurse=False)  # type: ignore[index, union-attr]
    trained = any(parameter.requires_grad for parameter in originals)
    return nn.Parameter(getattr(module, name).detach().clone(), requires_grad=trained)
