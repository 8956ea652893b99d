r"""Which singular directions of two networks line up.

Permutations keep the singular values of weight matrices :math:`W = U S V^\top`. What weight matching changes is how the
directions meet, mostly those of large singular values, as its objective is

.. math:: \langle W_a, W_b \rangle = \sum_{i,j} s^a_i s^b_j \, (u^a_i \cdot u^b_j)(v^a_i \cdot v^b_j)

(Ito, Yamada, Kumagai, "Analysis of Linear Mode Connectivity via Permutation-Based Weight Matching", ICLR 2025, arXiv
2402.04051, theorem 4.1).

Legend: ``O`` outputs, ``I`` inputs (for a convolution the unfolded patch), ``R`` singular directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.data import Batches
from weightsmith.core.errors import HyperparameterError, LayerNotFoundError, ShapeError
from weightsmith.core.io import StateDict
from weightsmith.core.models import find_layers, observe
from weightsmith.core.progress import track
from weightsmith.core.statistics import Gram

__all__ = ["Alignment", "alignment", "alignment_map", "input_energy", "matrices_of"]


@dataclass(frozen=True)
class Alignment:
    r"""How far the singular directions of two networks line up.

    Attributes
    ----------
    value : float
        :math:`R`, between -1 and 1: over all layers together.
    layers : dict of str to float
        The same of each layer.
    kept : dict of str to tuple of int
        Directions above the threshold in each of the two networks.
    """

    value: float
    layers: dict[str, float]
    kept: dict[str, tuple[int, int]]


def matrices_of(model: nn.Module, exclude: str | Sequence[str] = ()) -> dict[str, Callable[[Tensor], Tensor]]:
    """Names of the weights of linear and convolutional layers, with what makes a matrix ``[out, in]`` of each.

    Parameters
    ----------
    model : nn.Module
        Tied weights count once.
    exclude : str or sequence of str
        Shell patterns on layer names, to leave out.

    Examples
    --------
    >>> list(matrices_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))))
    ['0.weight', '2.weight']
    """
    return {f"{layer.name}.weight".lstrip("."): layer.matrix for layer in find_layers(model, exclude=exclude)}


def alignment(
    start: StateDict,
    end: StateDict,
    matrices: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    *,
    gamma: float = 0.3,
) -> Alignment:
    r"""How far the large singular directions of two networks line up, layer by layer.

    .. math::
        R = \frac{\sum_l \sum_{i,j} (u^a_{l,i} \cdot u^b_{l,j})(v^a_{l,i} \cdot v^b_{l,j})}{\sum_l n_l}
          = \frac{\sum_l \langle Q^a_l, Q^b_l \rangle}{\sum_l n_l}, \qquad Q = U_k V_k^\top

    over the directions whose singular value is at least ``gamma`` times the largest. 1 for a network and itself, about
    0 for two that were trained apart.

    Parameters
    ----------
    start, end : state dict
        Of one architecture; permute the second before.
    matrices : mapping of str to callable, optional
        Of :func:`matrices_of`; by default all tensors of rank two and more, flattened from their second axis on.
    gamma : float, default: 0.3
        In [0, 1].

    Raises
    ------
    HyperparameterError
        If ``gamma`` is out of range.
    LayerNotFoundError
        If there is no matrix.
    ShapeError
        If the two differ in shape.

    Notes
    -----
    Where the two networks keep different numbers of directions, :math:`n_l` is their geometric mean, so that
    :math:`|R| \le 1`.

    Examples
    --------
    >>> weights = {"w": torch.diag(torch.tensor([3.0, 1.0]))}
    >>> alignment(weights, {"w": torch.diag(torch.tensor([2.0, -1.0]))}, gamma=0.0).value
    0.0
    >>> alignment(weights, {"w": torch.diag(torch.tensor([2.0, -0.1]))}).value
    0.7071...
    """
    _check_gamma(gamma)
    if matrices is None:
        matrices = {
            name: lambda x: x.flatten(1)
            for name, tensor in start.items()
            if tensor.ndim > 1 and tensor.is_floating_point()
        }
    if not matrices:
        raise LayerNotFoundError("no weight matrix to align")
    layers, kept = {}, {}
    total, count = 0.0, 0.0
    for name, matrix in track(matrices.items(), "singular directions"):
        if start[name].shape != end[name].shape:
            raise ShapeError(f"tensor {name!r}", found=tuple(end[name].shape), expected=tuple(start[name].shape))
        (polar_a, n_a), (polar_b, n_b) = (_polar(matrix(state[name].detach()), gamma) for state in (start, end))
        inner, n = float((polar_a * polar_b).sum()), math.sqrt(n_a * n_b)
        layers[name], kept[name] = inner / n, (n_a, n_b)
        total, count = total + inner, count + n
    return Alignment(total / count, layers, kept)


def alignment_map(
    first_OI: Float[Tensor, "O I"], second_OI: Float[Tensor, "_ _"], directions: int = 32
) -> Float[Tensor, "R R"]:
    r"""Which singular direction of one matrix lines up with which of another.

    Entry :math:`(i, j)` is :math:`(u^a_i \cdot u^b_j)(v^a_i \cdot v^b_j)`, largest singular values first. Weighted by
    :math:`s^a_i s^b_j` the full map sums to the inner product of the matrices.

    Examples
    --------
    >>> alignment_map(torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, 2.0]))).abs()
    tensor([[0., 1.],
            [1., 0.]])
    """
    if first_OI.shape != second_OI.shape:
        raise ShapeError("the second matrix", found=tuple(second_OI.shape), expected=tuple(first_OI.shape))
    (u_a, _, v_a), (u_b, _, v_b) = (_svd(matrix) for matrix in (first_OI, second_OI))
    k = min(directions, u_a.shape[1])
    return ((u_a[:, :k].T @ u_b[:, :k]) * (v_a[:k] @ v_b[:k].T)).to(first_OI.dtype)


def input_energy(
    model: nn.Module, calibration: Batches, *, gamma: float = 0.3, exclude: str | Sequence[str] = ()
) -> dict[str, float]:
    r"""Which share of its input's energy each layer meets along its large singular directions.

    .. math:: \sum_{i \le k} \lVert X v_i \rVert^2 \,/\, \lVert X \rVert^2

    Averaging two networks moves a layer's output by no more than the singular directions do in which they differ and
    the input lies: where this share is high, it is enough that the large directions line up (the paper's theorem 4.2).

    Parameters
    ----------
    model : nn.Module
        Any model; only read.
    calibration : Batches
        Its inputs.
    gamma : float, default: 0.3
        Directions with a singular value of at least this share of the largest, in [0, 1].
    exclude : str or sequence of str
        Shell patterns on layer names, to leave out.

    Returns
    -------
    dict of str to float
        By layer; those no batch reaches are absent.

    Raises
    ------
    CalibrationError
        If there are no batches, or the model rejects one.
    HyperparameterError
        If ``gamma`` is out of range.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = model[0].weight.data.copy_(torch.diag(torch.tensor([4.0, 1.0])))
    >>> round(input_energy(model, [torch.tensor([[3.0, 1.0]])])["0"], 6)
    0.9
    """
    _check_gamma(gamma)
    layers = find_layers(model, exclude=exclude)
    seen = observe(model, calibration, layers, Gram)
    shares = {}
    for layer in layers:
        if layer.name in seen:
            _, s, v = _svd(layer.weight_OI)
            kept_RI = v[: _kept(s, gamma)]
            gram_II = seen[layer.name].gram_II.double()
            energy = float(gram_II.trace())
            shares[layer.name] = float(((kept_RI @ gram_II) * kept_RI).sum()) / energy if energy else 0.0
    return shares


def _svd(matrix_OI: Float[Tensor, "O I"]) -> tuple[Tensor, Tensor, Tensor]:
    u, s, v = torch.linalg.svd(matrix_OI.double(), full_matrices=False)
    return u, s, v


def _polar(matrix_OI: Float[Tensor, "O I"], gamma: float) -> tuple[Float[Tensor, "O I"], int]:
    """The orthogonal factor over the directions above the threshold, and their number."""
    u, s, v = _svd(matrix_OI)
    k = _kept(s, gamma)
    return u[:, :k] @ v[:k], k


def _kept(s_R: Float[Tensor, "R"], gamma: float) -> int:
    """How many singular values are large."""
    return max(1, int((s_R >= gamma * s_R[0]).sum()))


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise HyperparameterError("gamma", found=gamma, expected="0 <= gamma <= 1")
