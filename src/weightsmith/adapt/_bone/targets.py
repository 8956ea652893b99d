"""Which layers Bone can adapt, and their shape as a matrix; others are refused before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from weightsmith.core.errors import HyperparameterError, ShapeError, UnsupportedModelError
from weightsmith.core.tied import parameter_names

if TYPE_CHECKING:
    from weightsmith.adapt._bone.config import BoneConfig

__all__ = ["CONVOLUTIONS", "check_targets", "has_weight", "matrix_shape"]

CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d

HEADS = "classifier", "score", "head", "fc"
"""Names of classifiers' heads."""

TRAIN_WHOLE = "Train the head whole: task_type='SEQ_CLS', or modules_to_save=[{0!r}] with exclude_modules=[{0!r}]."

Shape: TypeAlias = tuple[int, int, int]
"""Groups, outputs of a group, inputs of a group; the inputs of a convolution are its kernel's numbers."""


def check_targets(targets: Mapping[str, nn.Module], model: nn.Module, config: BoneConfig) -> None:
    """Check every layer that would be adapted.

    Parameters
    ----------
    targets : mapping of str to nn.Module
        The layers by their path in ``model``.
    model : nn.Module
        The model.
    config : BoneConfig
        The adapter.

    Raises
    ------
    HyperparameterError
        If dropout is asked for on a convolution.
    ShapeError
        If the blocks do not fit a layer.
    UnsupportedModelError
        If a layer is no matrix, its weight cannot be read where that is needed, or it is tied to another layer.
    """
    for name, module in targets.items():
        _check_kind(name, module, config)
    _check_tied(targets, model)
    shapes = {name: matrix_shape(module) for name, module in targets.items()}
    for name, shape in shapes.items():
        _check_shape(name, shape, config, list(shapes.values()))


def has_weight(module: nn.Module) -> bool:
    """Whether the layer's weight can be read and written, dequantized where it has to be."""
    backend = resolve_quantization_backend(module)
    if backend is not None:
        return bool(backend.supports_merge)
    weight = getattr(module, "weight", None)
    kinds = (nn.Linear, Conv1D, *CONVOLUTIONS)
    return isinstance(module, kinds) and isinstance(weight, Tensor) and weight.is_floating_point()


def matrix_shape(module: nn.Module) -> Shape:
    """Return the layer's shape as a matrix for each group.

    Examples
    --------
    >>> matrix_shape(nn.Conv2d(8, 6, 3, groups=2))
    (2, 3, 36)
    """
    if isinstance(module, Conv1D):
        width, out = module.weight.shape
        return 1, out, width
    if isinstance(module, CONVOLUTIONS):
        width = module.in_channels // module.groups * math.prod(module.kernel_size)
        return module.groups, module.out_channels // module.groups, width
    return 1, int(module.out_features), int(module.in_features)  # type: ignore[arg-type]


def _check_kind(name: str, module: nn.Module, config: BoneConfig) -> None:
    if isinstance(module, NonDynamicallyQuantizableLinear):
        raise UnsupportedModelError(
            f"layer {name!r} is read by nn.MultiheadAttention without being called",
            do="Leave it out with exclude_modules.",
        )
    is_linear = hasattr(module, "in_features") and hasattr(module, "out_features")
    is_linear = is_linear and isinstance(getattr(module, "weight", None), (Tensor, type(None)))  # packed: a method
    if not is_linear and not isinstance(module, (Conv1D, *CONVOLUTIONS)):
        raise UnsupportedModelError(
            f"layer {name!r}",
            found=type(module).__name__,
            expected="Linear, Conv1D, a convolution or a quantized linear layer",
        )
    if config.variant == "bat" and not has_weight(module):
        raise UnsupportedModelError(
            f"variant 'bat' needs the weight of layer {name!r} at every step",
            found=f"{type(module).__name__}, whose weight cannot be read",
            do="Take variant='bat-row' or 'miss'.",
        )
    if config.miss_dropout and isinstance(module, CONVOLUTIONS):
        raise HyperparameterError(f"miss_dropout on convolution {name!r}", found=config.miss_dropout, expected="0")


def _check_tied(targets: Mapping[str, nn.Module], model: nn.Module) -> None:
    owners = {weight: [_layer_of(name) for name in names] for weight, names in parameter_names(model).items()}
    for name, module in targets.items():
        weight = module._parameters.get("weight")
        others = [other for other in (owners.get(weight, []) if weight is not None else []) if other != name]
        if others:
            raise UnsupportedModelError(
                f"layer {name!r} shares its weight with {others[0]!r}, which would not be adapted with it",
                do="Leave it out with exclude_modules, or untie the weights.",
            )


def _layer_of(parameter: str) -> str:
    return parameter.rpartition(".")[0].removesuffix(".base_layer")


def _check_shape(name: str, shape: Shape, config: BoneConfig, shapes: Sequence[Shape]) -> None:
    groups, out, width = shape
    head = name.rpartition(".")[2] in HEADS
    where = f"layer {name!r} of {groups * out} x {width}" + (f" in {groups} groups" if groups > 1 else "")
    if config.variant == "mini" and groups * out % config.mini_r:
        raise ShapeError(f"mini_r for {where}", found=config.mini_r, expected=f"a divisor of {groups * out}")
    square = config.variant in ("bat", "bat-row") and not config.pad
    limit = min(out, width) if square else width
    do = TRAIN_WHOLE.format(name) if head else _nearest(config, shapes)
    if config.r > limit:
        raise ShapeError(f"r for {where}", found=config.r, expected=f"at most {limit}", do=do)
    if square and (out % config.r or width % config.r):
        raise ShapeError(f"r for {where}", found=config.r, expected=f"a divisor of {out} and {width}", do=do)


def _nearest(config: BoneConfig, shapes: Sequence[Shape]) -> str:
    if config.variant in ("miss", "mini"):
        return f"Take r={min(width for _, _, width in shapes)} or less."
    common = math.gcd(*(size for _, out, width in shapes for size in (out, width)))
    divisors = [r for r in range(1, common + 1) if common % r == 0]
    best = min(divisors, key=lambda r: (abs(r - config.r), -r))
    return f"Nearest r for all layers: {best}; or pad=True."
