r"""WINA's tensor transformation: a change of basis that makes the columns of keys and gates orthogonal.

With orthogonal columns the squared error of dropping inputs is exactly the sum of their squared scores, so that scores
with norms select the best set. For a layer :math:`y = W \operatorname{diag}(g) \hat x` behind a norm with gain g, and
:math:`W \operatorname{diag}(g) = U S V^\top`,

.. math:: y = (W \operatorname{diag}(g) V) (V^\top \hat x) = (U S) x'

has columns of norm S. Layers with fewer outputs than inputs (keys of grouped-query attention) end in columns of zeros.

The paper rotates the residual stream and adds a matrix to every shortcut; here the matrix follows the norm. The sparse
products and the cost are the same (every token reads two more matrices of width x width per block), but nothing else of
the model changes: this is exact also for layer norms and tied embeddings, unlike the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.data import Batches, as_batches, call
from weightsmith.core.errors import CalibrationError, LayerNotFoundError, UnsupportedModelError
from weightsmith.core.models import Block, Layer, stream
from weightsmith.core.results import Result, record
from weightsmith.sparsify._wina.layers import REFERENCE, find_input_groups, projections, uses_norms

__all__ = ["rotate"]

TOLERANCE = 1e-3
"""Relative change of the model's output that rounding explains."""


def rotate(
    model: nn.Module,
    calibration: Batches,
    *,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Result:
    """Make the columns of keys and gates orthogonal, before WINA; the function of the model does not change.

    Parameters
    ----------
    model : nn.Module
        Any dense model, changed in place; in float32 or wider the change is exact to rounding.
    calibration : sequence of Batch
        One batch is enough: to see which layers read which norm, and to check the result.
    include, exclude : str or sequence of str
        Shell patterns on layer names.

    Returns
    -------
    Result
        A row per rotation: its layers, and the number of columns that became zero.

    Raises
    ------
    UnsupportedModelError
        If a norm's output is read by something else. The model does not change then.
    LayerNotFoundError
        If no layer is named like a key or a gate.

    References
    ----------
    arXiv 2505.19427, tensor transformation.
    """
    wanted = {layer.name for layer in projections(model, include, exclude)}
    rotations = []
    with record("rotate", include=include, exclude=exclude) as result:
        for block in stream(model, as_batches(calibration)[:1], include, exclude):
            layers = {layer.name: layer for layer in block.layers if layer.name in wanted}
            for group in find_input_groups(block, list(layers.values())) if layers and block.inputs else ():
                references = [layers[name] for name in group if uses_norms(name, "reference")]
                if references:
                    rotation = _find_rotation(block, [layers[name] for name in group], references)
                    rotations.append(rotation)
                    width, outs = len(rotation.matrix_II), sum(r.weight_OI.shape[0] for r in references)
                    result.layer(", ".join(group), columns=width, zero_columns=max(0, width - outs))
        if not rotations:
            raise LayerNotFoundError("no layer is named like a key or a gate", expected=list(REFERENCE))
        _install(model, rotations, calibration)
    return result


@dataclass(frozen=True)
class _Rotation:
    """A change of basis between a norm and the layers that read its output.

    Attributes
    ----------
    norm : nn.Module
        Its output is multiplied with ``matrix_II``.
    matrix_II : Tensor of shape (in, in)
        In float64.
    layers : list of (Layer, Tensor)
        The readers, each with its new weight ``[out, in]``, in float64.
    """

    norm: nn.Module
    matrix_II: Float[Tensor, "in in"]
    layers: list[tuple[Layer, Tensor]]


@torch.no_grad()
def _find_rotation(block: Block, readers: Sequence[Layer], references: Sequence[Layer]) -> _Rotation:
    """Find the basis in which the stacked weights of some layers have orthogonal columns.

    Parameters
    ----------
    block : Block
        With an input to run it on.
    readers : sequence of Layer
        All layers that receive the same tensor.
    references : sequence of Layer
        Those of them whose columns shall be orthogonal.

    Returns
    -------
    _Rotation
        Nothing is changed yet.

    Raises
    ------
    UnsupportedModelError
        If the layers' input is not the output of a module of the block.
    """
    norm = _source(block, readers[0])
    width = readers[0].weight_OI.shape[1]
    gain = torch.ones(width, dtype=torch.float64)
    if any(True for _ in norm.parameters()):
        gain = _norm_gain(norm, width).double().cpu()
        # any scale does where the norm passes nothing on
        gain = gain.where(gain != 0, 1.0)
    folded_OI = torch.cat([layer.weight_OI.double().cpu() * gain for layer in references])
    basis_II = torch.linalg.svd(folded_OI, full_matrices=True).Vh.T
    new = [(layer, (layer.weight_OI.double().cpu() * gain) @ basis_II) for layer in readers]
    return _Rotation(norm, basis_II / gain.unsqueeze(1), new)


@torch.no_grad()
def _install(model: nn.Module, rotations: Sequence[_Rotation], calibration: Batches) -> None:
    """Change the weights and rotate behind the norms; check that the model still computes the same.

    Raises
    ------
    UnsupportedModelError
        If it does not, because something else reads a norm's output. The model is then as it was.
    """
    before = _output(model, calibration)
    old = [(layer, layer.weight_OI.clone()) for rotation in rotations for layer, _ in rotation.layers]
    for rotation in rotations:
        like = next(layer.weight_OI for layer, _ in rotation.layers)
        rotation.norm.register_buffer("rotation", rotation.matrix_II.to(like.device, like.dtype))
        rotation.norm.register_forward_hook(_rotate)
        for layer, weight_OI in rotation.layers:
            layer.write(weight_OI)
    after = _output(model, calibration)
    if not bool((after - before).abs().max() <= TOLERANCE * before.abs().max()):
        for layer, weight_OI in old:
            layer.write(weight_OI)
        for rotation in rotations:
            del rotation.norm.rotation
            for key, hook in list(rotation.norm._forward_hooks.items()):
                if hook is _rotate:
                    del rotation.norm._forward_hooks[key]
        raise UnsupportedModelError(
            "the rotated model computes something else",
            found=f"outputs that differ by {float((after - before).abs().max()):.2g}",
            do="Leave out, with exclude, layers whose norm is read by something other than linear layers.",
        )


def _rotate(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    rotation: Any = norm.rotation
    return output @ rotation


def _source(block: Block, reader: Layer) -> nn.Module:
    """The module of the block whose output the reader receives."""
    if not block.inputs:
        raise CalibrationError(f"no calibration batch reaches block {block.name!r}")
    made: list[tuple[Any, nn.Module]] = []
    found: list[nn.Module] = []

    def remember(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        made.append((output, module))

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.extend(source for output, source in made if output is args[0])

    handles = [m.register_forward_hook(remember) for m in block.module.modules() if not list(m.children())]
    handles.append(reader.module.register_forward_pre_hook(look))
    try:
        args, kwargs, _ = block.inputs[0]
        block.module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise UnsupportedModelError(
            f"the input of layer {reader.name!r} is not the output of a norm in its block",
            do="Leave it out with exclude.",
        )
    return found[-1]


def _output(model: nn.Module, calibration: Batches) -> Tensor:
    output = call(model, as_batches(calibration)[0])
    return output if isinstance(output, Tensor) else next(v for v in output.values() if isinstance(v, Tensor))


def _norm_gain(norm: nn.Module, width: int) -> Float[Tensor, " width"]:
    """Measure the gain of a norm with a vector of alternating ±1024: its mean is 0, its mean square is beyond any eps.

    This works for every form of the gain (``weight``, ``1 + weight``), and for layer norms with a bias.

    Examples
    --------
    >>> norm = nn.LayerNorm(2)
    >>> _ = norm.weight.data.copy_(torch.tensor([2.0, -3.0])), norm.bias.data.fill_(7.0)
    >>> _norm_gain(norm, 2).round(decimals=3)
    tensor([ 2., -3.])
    """
    like = next(norm.parameters())
    probe = torch.ones(1, 1, width, dtype=like.dtype, device=like.device)
    probe[..., 1::2] = -1
    with torch.no_grad():
        return (probe * (norm(1024 * probe) - norm(-1024 * probe)) / 2).reshape(-1)
