r"""Dictionaries of a layer's inputs, learned while the model runs; orthogonal ones can be folded into its layers.

If no nonlinearity lies between the output of one layer and the input of another, as between the values of attention
and its output projection, an orthogonal basis D of that output changes only the coordinates:

.. math:: W_{out}\, y = (W_{out} D)\,(D^\top y), \qquad D^\top (W_{in} x + b) = (D^\top W_{in})\, x + D^\top b

Legend: ``G`` groups with a basis each, ``N`` features of a basis, ``S`` sequences, ``T`` tokens, ``I`` inputs,
``O`` outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError, UnsupportedModelError
from weightsmith.core.models import Layer

if TYPE_CHECKING:
    from weightsmith.dictionary._online_orthogonal.method import OnlineOrthogonalDictionary

__all__ = ["InputDictionaries", "fold_rotation"]

ORTHOGONAL_WITHIN = 1e-4
"""Largest entry of :math:`D^\\top D - I` that rounding of a float32 basis explains."""


class InputDictionaries:
    """Learn from a layer's inputs batch by batch: a statistic for :meth:`~weightsmith.core.models.Block.observe`.

    The input is split into equal groups of features, one learner each, and a group into pieces of ``width`` features;
    the heads of attention that share a value projection are such a group. Every ``batch_size`` rows of a learner are
    one step. Under ``torchrun`` all processes take the same steps together, so each needs equally many rows.

    Parameters
    ----------
    layer : Layer
        The layer whose inputs are learned from.
    learners : sequence of OnlineOrthogonalDictionary
        One per group.
    width : int
        Features of a dictionary; the number of inputs is a multiple of ``len(learners) * width``.

    Raises
    ------
    ShapeError
        If the inputs cannot be split that way.

    Examples
    --------
    >>> from weightsmith.dictionary import OnlineOrthogonalDictionary
    >>> watcher = InputDictionaries(Layer("fc", nn.Linear(8, 1)), [OnlineOrthogonalDictionary(), ], width=4)
    >>> watcher.update(torch.randn(2, 16, 8))
    >>> watcher.learners[0].n_samples_seen_
    64
    """

    def __init__(self, layer: Layer, learners: Sequence[OnlineOrthogonalDictionary], width: int) -> None:
        inputs = layer.weight_OI.shape[1]
        if not learners or width < 1 or inputs % (len(learners) * width):
            raise ShapeError(
                f"inputs of layer {layer.name!r}", found=inputs, expected=f"a multiple of {len(learners)} x {width}"
            )
        self.learners, self.width = list(learners), width

    def update(self, x_STI: Float[Tensor, "S T I"], mask_ST: Bool[Tensor, "S T"] | None = None) -> None:
        """Take in one batch; ``mask_ST`` is False on padding."""
        rows = x_STI.flatten(0, 1) if mask_ST is None else x_STI[mask_ST]
        for learner, part in zip(self.learners, rows.chunk(len(self.learners), dim=1), strict=True):
            for batch in part.reshape(-1, self.width).split(learner.batch_size):
                learner.partial_fit(batch)

    def all_reduce(self) -> None:
        """Do nothing: all processes took every step together."""


@torch.no_grad()
def fold_rotation(writer: Layer, reader: Layer, bases_GNN: Float[Tensor, "groups features atoms"]) -> None:
    """Express a vector that one layer writes and another reads in an orthonormal basis.

    The function of the model does not change if the vector has no other readers and writers and nothing nonlinear acts
    on it in between; attention may mix the tokens of a head. An exception leaves the layers unchanged.

    Parameters
    ----------
    writer, reader : Layer
        Linear layers, such as ``v_proj`` and ``o_proj`` of a Llama.
    bases_GNN : Tensor of shape (groups, features, atoms)
        Orthogonal matrices with atoms as columns (``components_.T``). The outputs of ``writer`` and the inputs of
        ``reader`` consist of pieces of ``features`` values, equally many consecutive ones for every basis. (With
        grouped-query attention the reader has several times as many as the writer.)

    Raises
    ------
    HyperparameterError
        If a basis is not orthogonal.
    ShapeError
        If the layers cannot be split into such pieces.
    UnsupportedModelError
        If a layer is a convolution, or other layers share its weight.
    NonFiniteError
        If the bases hold NaN or infinity.

    Examples
    --------
    >>> writer, reader = Layer("a", nn.Linear(3, 2)), Layer("b", nn.Linear(2, 2))
    >>> x = torch.ones(1, 3)
    >>> before = reader.module(writer.module(x))
    >>> fold_rotation(writer, reader, torch.tensor([[[0.6, -0.8], [0.8, 0.6]]]))
    >>> torch.allclose(reader.module(writer.module(x)), before, atol=1e-6)
    True
    """
    _check(writer, reader, bases_GNN)
    written_OI = _blocks(writer, 0, bases_GNN).mT @ _pieces(writer, 0, bases_GNN)
    read_OI = _pieces(reader, 1, bases_GNN) @ _blocks(reader, 1, bases_GNN)
    bias = writer.module.bias
    if isinstance(bias, Tensor):
        pieces = bias.double().reshape(-1, bases_GNN.shape[1], 1)
        bias.copy_((_blocks(writer, 0, bases_GNN).mT @ pieces).flatten())
    writer.write(written_OI.reshape(writer.weight_OI.shape))
    reader.write(read_OI.transpose(0, 1).reshape(reader.weight_OI.shape))


def _pieces(layer: Layer, side: int, bases_GNN: Tensor) -> Float[Tensor, "pieces rows columns"]:
    """The weight split along its outputs (``side`` 0) or inputs (1), in float64."""
    weight_OI = layer.weight_OI.double()
    width = bases_GNN.shape[1]
    if side == 0:
        return weight_OI.reshape(-1, width, weight_OI.shape[1])
    return weight_OI.reshape(weight_OI.shape[0], -1, width).transpose(0, 1)


def _blocks(layer: Layer, side: int, bases_GNN: Tensor) -> Float[Tensor, "pieces features atoms"]:
    """The basis of every piece."""
    pieces = layer.weight_OI.shape[side] // bases_GNN.shape[1]
    return bases_GNN.to(layer.weight.device, torch.float64).repeat_interleave(pieces // len(bases_GNN), dim=0)


def _check(writer: Layer, reader: Layer, bases_GNN: Tensor) -> None:
    groups, width, atoms = bases_GNN.shape
    if width != atoms:
        raise ShapeError("bases", found=tuple(bases_GNN.shape), expected="(groups, features, features)")
    if not bool(bases_GNN.isfinite().all()):
        raise NonFiniteError("the bases hold NaN or infinity")
    bases = bases_GNN.double()
    error = float((bases.mT @ bases - torch.eye(width, dtype=torch.float64, device=bases.device)).abs().max())
    if error > ORTHOGONAL_WITHIN:
        raise HyperparameterError(
            "the bases are not orthogonal",
            found=f"an error of {error:.2g}",
            do="Learn them without whiten, and pass components_.T.",
        )
    for layer, side in ((writer, 0), (reader, 1)):
        if not isinstance(layer.module, (nn.Linear, Conv1D)):
            raise UnsupportedModelError(f"layer {layer.name!r}", found=type(layer.module).__name__, expected="linear")
        if layer.aliases:
            raise UnsupportedModelError(f"layer {layer.name!r} shares its weight", found=f"{list(layer.aliases)}")
        if layer.weight_OI.shape[side] % (groups * width):
            raise ShapeError(
                f"{('outputs', 'inputs')[side]} of layer {layer.name!r}",
                found=layer.weight_OI.shape[side],
                expected=f"a multiple of {groups} x {width}",
            )
