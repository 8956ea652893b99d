"""Find the layers a method works on, see each weight as a matrix, swap modules.

Legend: ``O`` outputs, ``I`` inputs (for a convolution the unfolded patch), ``N`` rows (tokens, patches).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import escape

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from weightsmith.core.errors import LayerNotFoundError, NonFiniteError, UnsupportedModelError
from weightsmith.core.linalg import is_finite
from weightsmith.core.processes import wrapper_path
from weightsmith.core.sharding import refuse_sharded

__all__ = [
    "VOCABULARY_HEADS",
    "Layer",
    "adapter_paths",
    "check_weight",
    "computed_by",
    "evaluation_mode",
    "find_layers",
    "get_module",
    "matches",
    "own_weights",
    "patterns",
    "swap_module",
    "writable",
]

VOCABULARY_HEADS = ("*lm_head", "*embed_out", "*predictions.decoder")
"""Names that language models give to the layer over the vocabulary."""


@dataclass(frozen=True)
class Layer:
    """A weight matrix inside a model.

    ``nn.Linear``, Hugging Face's transposed ``Conv1D``, ungrouped ``nn.Conv1d/2d/3d`` and one expert of a stacked
    parameter all look the same from here: a matrix of outputs by inputs that rows of inputs are multiplied with.

    Attributes
    ----------
    name : str
        Dotted path in the model.
    module : nn.Module
        The module itself.
    aliases : tuple of str
        Paths of the other modules that hold the same parameter (tied weights); a method changes them once.
    parameter : str
        Name of the parameter in its module.
    expert : int or None
        Index of the expert in a parameter that stacks the matrices of all experts.
    """

    name: str
    module: nn.Module
    aliases: tuple[str, ...] = field(default=())
    parameter: str = "weight"
    expert: int | None = None

    @property
    def weight(self) -> Tensor:
        """The module's weight itself: the parameter in the module's own shape, or the view of one expert."""
        weight = getattr(self.module, self.parameter)
        assert isinstance(weight, Tensor)
        return weight if self.expert is None else weight[self.expert]

    @property
    def frozen(self) -> bool:
        """Whether the weight is not to be trained: its parameter asks for no gradient."""
        parameter = self.module._parameters.get(self.parameter)
        return not (self.weight if parameter is None else parameter).requires_grad

    @property
    def stack(self) -> str:
        """Name of the module, or of the parameter that stacks the matrices of all experts.

        Examples
        --------
        >>> Layer("3.experts.3.up_proj", nn.Module(), (), "up_proj", 3).stack
        '3.experts.up_proj'
        """
        return self.name if self.expert is None else ".".join(self.name.rsplit(f".{self.expert}.", 1))

    @property
    def bias(self) -> Tensor | None:
        """The bias that is added to the product, or the view of one expert's; None without one."""
        bias: Tensor | None = getattr(self.module, "bias" if self.expert is None else f"{self.parameter}_bias", None)
        return bias if self.expert is None or bias is None else bias[self.expert]

    @property
    def weight_OI(self) -> Float[Tensor, "out in"]:
        """The weight as a matrix ``[out, in]``, to be read; :meth:`write` changes it.

        It is a view, but for a convolution in another order of memory (``torch.channels_last``): a copy.

        Examples
        --------
        >>> Layer("c", nn.Conv2d(3, 8, 5)).weight_OI.shape
        torch.Size([8, 75])
        """
        return self.matrix(self.weight.detach())

    def matrix(self, like_weight: Shaped[Tensor, "..."]) -> Shaped[Tensor, "out in"]:
        """A tensor shaped like the module's weight (a mask, say) as a view ``[out, in]``."""
        if self.expert is not None:
            return like_weight.T if self.module.is_transposed else like_weight
        return like_weight.T if isinstance(self.module, Conv1D) else like_weight.flatten(1)

    def like_weight(self, matrix_OI: Shaped[Tensor, "out in"]) -> Shaped[Tensor, "..."]:
        """A matrix ``[out, in]`` in the shape of the module's weight: the reverse of :meth:`matrix`.

        Examples
        --------
        >>> Layer("c", nn.Conv2d(3, 8, 5)).like_weight(torch.zeros(8, 75)).shape
        torch.Size([8, 3, 5, 5])
        """
        is_transposed = isinstance(self.module, Conv1D) if self.expert is None else self.module.is_transposed
        return matrix_OI.T if is_transposed else matrix_OI.reshape(self.weight.shape)

    def write(self, new_OI: Float[Tensor, "out in"]) -> None:
        """Set the weight to a matrix ``[out, in]``; it stays where and in the order it is in memory.

        Examples
        --------
        >>> layer = Layer("c", nn.Conv2d(3, 8, 5).to(memory_format=torch.channels_last))
        >>> layer.write(torch.zeros(8, 75))
        >>> int(layer.weight.count_nonzero())
        0
        """
        self.weight.detach().copy_(self.like_weight(new_OI))

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
        if self.expert is not None or isinstance(self.module, (nn.Linear, Conv1D)):
            return x.reshape(1, -1, x.shape[-1]) if x.ndim < 3 else x.reshape(x.shape[0], -1, x.shape[-1])
        return _patches(self.module, x)

    def output_rows(self, y: Tensor) -> Float[Tensor, "sequences rows out"]:
        """The module's output, or the gradient of it, as rows: one for each of :meth:`rows`.

        Examples
        --------
        >>> Layer("c", nn.Conv2d(3, 8, 5)).output_rows(torch.zeros(2, 8, 4, 4)).shape
        torch.Size([2, 16, 8])
        """
        if self.expert is not None or isinstance(self.module, (nn.Linear, Conv1D)):
            return y.reshape(1, -1, y.shape[-1]) if y.ndim < 3 else y.reshape(y.shape[0], -1, y.shape[-1])
        space = len(self.module.kernel_size)  # type: ignore[arg-type]
        images = y.unsqueeze(0) if y.ndim == space + 1 else y
        return images.flatten(2).transpose(1, 2)


def find_layers(
    model: nn.Module, include: str | Sequence[str] = "*", exclude: str | Sequence[str] = (), *, strict: bool = True
) -> list[Layer]:
    """Find every module with a weight matrix whose path matches, tied weights once.

    Parameters
    ----------
    model : nn.Module
        Any model.
    include, exclude : str or sequence of str
        Shell patterns (``*`` also matches dots) on the module's dotted path; that in the model itself, if it is
        wrapped by ``torch.compile`` or data parallelism.
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

    Warns
    -----
    UserWarning
        If one of several patterns matches nothing and ``strict``.

    Notes
    -----
    Grouped and transposed convolutions are not a single matrix and are left out. So are matrices without values, and
    those of an adapter (LoRA): only the layer under it is found. Experts in one stacked parameter are found by
    :func:`~weightsmith.core.models.find_experts`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> [layer.name for layer in find_layers(model, exclude="2")]
    ['0']
    """
    include, exclude = patterns(include), patterns(exclude)
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    adapters, wrapper = adapter_paths(model), wrapper_path(model)
    for name, module in model.named_modules(remove_duplicate=False):
        if _is_matrix(module) and not f"{name}.".startswith(adapters):
            # a computed weight is another tensor at each access
            owner = module if computed_by(module) else module.weight
            owners.setdefault(id(owner), []).append((name, module))
    layers = []
    for places in owners.values():
        matching = [place for place in places if matches(place[0].removeprefix(wrapper), include, exclude)]
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
    if strict:
        warn_of_unmatched(include, [name.removeprefix(wrapper) for places in owners.values() for name, _ in places])
    return layers


def adapter_paths(model: nn.Module) -> tuple[str, ...]:
    """Return the paths, each with a dot at its end, of the parts of a model that belong to adapters of PEFT."""
    return tuple(
        f"{name}.{child}.".lstrip(".")
        for name, module in model.named_modules(remove_duplicate=False)
        if "base_layer" in module._modules
        for child in module._modules
        if child != "base_layer"
    )


def computed_by(module: nn.Module, parameter: str = "weight") -> str:
    """Say what computes a module's weight from other tensors; empty if the weight is a parameter of its own.

    Examples
    --------
    >>> computed_by(nn.Linear(2, 2))
    ''
    >>> computed_by(torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    '_WeightNorm'
    >>> from torch.nn.utils import prune
    >>> computed_by(prune.l1_unstructured(nn.Linear(2, 2), "weight", 1))
    'L1Unstructured'
    """
    if parametrize.is_parametrized(module, parameter):
        chain = module.parametrizations[parameter]  # type: ignore[index]
        return ", ".join(type(part).__name__ for part in chain)
    if parameter in module._parameters:
        return "static sparsity" if f"{parameter}_mask" in module._buffers else ""
    hooks = [
        hook
        for hook in module._forward_pre_hooks.values()
        if parameter in (getattr(hook, "name", None), getattr(hook, "_tensor_name", None))
    ]
    return type(hooks[0]).__name__ if hooks else "other tensors"


def writable(layers: Iterable[Layer]) -> None:
    """Refuse layers whose weights cannot be written, before anything changes.

    Raises
    ------
    UnsupportedModelError
        If a weight is computed from other tensors (weight normalization, parametrizations, ``torch.nn.utils.prune``),
        is not of floating point, or has a scale beside it (8-bit formats).

    Examples
    --------
    >>> writable(find_layers(nn.Linear(2, 2)))
    >>> model = nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)))
    >>> writable(find_layers(model))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    weightsmith.core.errors.UnsupportedModelError: the weight of layer '0' is computed: found _SpectralNorm...
    """
    for layer in layers:
        if how := computed_by(layer.module, layer.parameter):
            raise UnsupportedModelError(
                f"the weight of layer {layer.name!r} is computed",
                found=how,
                expected="a parameter of its own",
                do="Fold it into plain weights first, or leave the layer out with exclude.",
            )
        weight = layer.weight
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise UnsupportedModelError(
                f"layer {layer.name!r}",
                found=f"weights in {weight.dtype}",
                expected="floating point of 16 bits or more",
                do="Dequantize the model, or leave the layer out with exclude.",
            )


def own_weights(
    model: nn.Module, include: str | Sequence[str] = "*", exclude: str | Sequence[str] = ()
) -> tuple[list[Layer], list[str]]:
    """Find the layers whose weight can get a parametrization: no other module holds it.

    Returns
    -------
    layers : list of Layer
        Those whose weight is theirs alone.
    tied : list of str
        Names of the others.

    Raises
    ------
    LayerNotFoundError
        If no layer matches.
    NonFiniteError
        If a weight is NaN or infinite.
    UnsupportedModelError
        If a weight cannot be written, see :func:`writable`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    >>> model[1].weight = model[0].weight
    >>> own_weights(model)
    ([], ['1'])
    """
    refuse_sharded(model)
    layers, tied = [], []
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found = find_layers(model, include, exclude)
    writable(found)
    for layer in found:
        if not is_finite(layer.weight):
            raise NonFiniteError(f"{layer.name!r} holds NaN or infinity")
        if layer.aliases or id(layer.weight) in embeddings:
            tied.append(layer.name)
        else:
            layers.append(layer)
    return layers, tied


def exclude_frozen(layers: Sequence[Layer], exclude: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Leave layers that are not to be trained out of a training method.

    Parameters
    ----------
    layers : sequence of Layer
        Those that the method would change.
    exclude : str or sequence of str
        The user's patterns.

    Returns
    -------
    exclude : list of str
        Those patterns, and the names of the frozen layers.
    notes : list of str
        A sentence that names them; empty if there are none.

    Raises
    ------
    LayerNotFoundError
        If none is to be trained.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    >>> exclude_frozen(find_layers(model), "head")
    (['head', '1'], ['Frozen and unchanged: 1.'])
    """
    names = [layer.name for layer in layers if layer.frozen]
    if len(names) == len(layers):
        raise LayerNotFoundError(
            "every layer that matches is frozen", found=names[:5], do="Call requires_grad_(True) on those to train."
        )
    notes = [f"Frozen and unchanged: {', '.join(names)}."] if names else []
    return [*patterns(exclude), *map(escape, names)], notes


def check_weight(layer: Layer) -> None:
    """Refuse a weight that holds NaN or infinity.

    Raises
    ------
    NonFiniteError
        If it does.
    """
    if not is_finite(layer.weight_OI):
        raise NonFiniteError(f"the weight of layer {layer.name!r} holds NaN or infinity", do="Repair the checkpoint.")


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


def without_fast_path(model: nn.Module) -> None:
    """Have PyTorch's own transformer layers call their linear layers in evaluation mode, too.

    Otherwise they read the weights of these, and what a replaced layer computes is passed by.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # what their fused pass asks for


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
    if not isinstance(module, (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or getattr(module, "groups", 1) > 1:
        return False
    if parametrize.is_parametrized(module, "weight"):
        return True
    return isinstance(module.weight, Tensor) and (is_lazy(module.weight) or module.weight.numel() > 0)


def patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return one shell pattern, or several, as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given)


def matches(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a path matches one of the patterns to include and none of those to exclude."""
    return any(fnmatchcase(name, p) for p in include) and not any(fnmatchcase(name, p) for p in exclude)


def warn_of_unmatched(include: Sequence[str], names: Sequence[str]) -> None:
    """Say which patterns match none of the names."""
    if unmatched := [pattern for pattern in include if not any(fnmatchcase(name, pattern) for name in names)]:
        warnings.warn(f"no layer matches {unmatched} of the patterns {list(include)}", stacklevel=3)


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
