"""Find the layers a method works on, see each weight as a matrix, swap modules.

Legend: ``O`` outputs, ``I`` inputs (for a convolution the unfolded patch), ``N`` rows (tokens, patches).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weightsmith.core.errors import LayerNotFoundError, UnsupportedModelError

__all__ = ["Layer", "evaluation_mode", "find_layers", "get_module", "swap_module"]


@dataclass(frozen=True)
class Layer:
    """A weight matrix inside a model.

    ``nn.Linear``, Hugging Face's transposed ``Conv1D`` and ungrouped ``nn.Conv1d/2d/3d`` all look the same from
    here: a matrix of outputs by inputs that rows of inputs are multiplied with.

    Attributes
    ----------
    name : str
        Dotted path in the model.
    module : nn.Module
        The module itself.
    aliases : tuple of str
        Paths of the other modules that hold the same parameter (tied weights); a method changes them once.
    """

    name: str
    module: nn.Module
    aliases: tuple[str, ...] = field(default=())

    @property
    def weight(self) -> Tensor:
        """The module's weight itself: the parameter, in the module's own shape."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def weight_OI(self) -> Float[Tensor, "out in"]:
        """The weight as a view ``[out, in]``: writing to it writes to the model.

        Examples
        --------
        >>> Layer("c", nn.Conv2d(3, 8, 5)).weight_OI.shape
        torch.Size([8, 75])
        """
        return self.matrix(self.weight.detach())

    def matrix(self, like_weight: Shaped[Tensor, "..."]) -> Shaped[Tensor, "out in"]:
        """A tensor shaped like the module's weight (a mask, say) as a view ``[out, in]``."""
        return like_weight.T if isinstance(self.module, Conv1D) else like_weight.flatten(1)

    def rows(self, x: Tensor) -> Float[Tensor, "sequences rows in"]:
        """The module's input as the rows its weight matrix is multiplied with.

        Parameters
        ----------
        x : Tensor
            What the module's ``forward`` receives: ``[..., in]``, or ``[batch, channels, *space]`` for convolutions.

        Returns
        -------
        Tensor of shape (sequences, rows, in)
            Leading dimension: the independent sequences (or images) of the batch. An input of rank two is one
            sequence: the batch itself.
        """
        if isinstance(self.module, (nn.Linear, Conv1D)):
            return x.reshape(1, -1, x.shape[-1]) if x.ndim < 3 else x.reshape(x.shape[0], -1, x.shape[-1])
        return _patches(self.module, x)


def find_layers(
    model: nn.Module, include: str | Sequence[str] = "*", exclude: str | Sequence[str] = (), *, strict: bool = True
) -> list[Layer]:
    """Find every weight matrix whose path matches, tied weights once.

    Parameters
    ----------
    model : nn.Module
        Any model.
    include, exclude : str or sequence of str
        Shell patterns (``*`` also matches dots) on the module's dotted path.
    strict : bool, default: True
        Raise when nothing matches.

    Returns
    -------
    list of Layer
        In the order of ``model.named_modules()``.

    Raises
    ------
    LayerNotFoundError
        If nothing matches and ``strict``.

    Notes
    -----
    Grouped and transposed convolutions are not a single matrix and are left out.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> [layer.name for layer in find_layers(model, exclude="2")]
    ['0']
    """
    include, exclude = _patterns(include), _patterns(exclude)
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if _is_matrix(module):
            owners.setdefault(id(module.weight), []).append((name, module))
    layers = []
    for places in owners.values():
        matching = [
            (name, module)
            for name, module in places
            if any(fnmatchcase(name, p) for p in include) and not any(fnmatchcase(name, p) for p in exclude)
        ]
        if matching:
            name, module = matching[0]
            layers.append(Layer(name, module, tuple(other for other, _ in places if other != name)))
    if strict and not layers:
        have = [places[0][0] for places in owners.values()]
        raise LayerNotFoundError(
            f"no layer matches {list(include)} without {list(exclude)}",
            found=f"{len(have)} layers such as {have[:5]}",
            do="Check the patterns against the names of model.named_modules().",
        )
    return layers


def get_module(model: nn.Module, name: str) -> nn.Module:
    """Return the module at a dotted path, with an error that names the nearest existing part.

    Raises
    ------
    LayerNotFoundError
        If there is no such module.

    Examples
    --------
    >>> get_module(nn.Sequential(nn.ReLU()), "0")
    ReLU()
    """
    module = model
    for depth, part in enumerate(parts := name.split(".") if name else []):
        child = module._modules.get(part)
        if child is None:
            where = ".".join(parts[:depth]) or "the model"
            raise LayerNotFoundError(f"no module {name!r}", found=f"{where} has children {list(module._modules)[:8]}")
        module = child
    return module


def swap_module(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put ``new`` at a dotted path and return the module that was there.

    Raises
    ------
    LayerNotFoundError
        If there is no such module.
    UnsupportedModelError
        If ``name`` is the model itself.

    Examples
    --------
    >>> model = nn.Sequential(nn.ReLU())
    >>> swap_module(model, "0", nn.GELU())
    ReLU()
    >>> model[0]
    GELU(approximate='none')
    """
    if not name:
        raise UnsupportedModelError("cannot swap the model itself", do="Wrap it in nn.Sequential first.")
    old = get_module(model, name)
    parent, _, child = name.rpartition(".")
    get_module(model, parent)._modules[child] = new
    return old


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and each back in its own mode afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _is_matrix(module: nn.Module) -> bool:
    if isinstance(module, (nn.Linear, Conv1D)):
        return isinstance(module.weight, Tensor)
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1


def _patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _patches(conv: nn.Module, x: Tensor) -> Float[Tensor, "images patches in"]:
    """The patches a convolution multiplies its flattened kernel with, as views until the last copy."""
    assert isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    space = len(conv.kernel_size)
    if x.ndim == space + 1:
        x = x.unsqueeze(0)
    x = torch.nn.functional.pad(
        x, conv._reversed_padding_repeated_twice, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode
    )
    for axis, (size, step, dilation) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        x = x.unfold(2 + axis, dilation * (size - 1) + 1, step)[..., ::dilation]
    # [batch, channels, *positions, *kernel] -> [batch, positions, channels * kernel]
    order = [0, *range(2, 2 + space), 1, *range(2 + space, 2 + 2 * space)]
    return x.permute(order).reshape(x.shape[0], x.shape[2 : 2 + space].numel(), -1)
