r"""How far a merged network is from each of its inputs, and these from each other.

.. math:: d_i = \lVert \theta - \theta_i \rVert / \lVert \theta_i \rVert, \qquad
    d_{ij} = \lVert \theta_j - \theta_i \rVert / \lVert \theta_i \rVert

Legend: ``N`` networks, ``P`` weights that are compared.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightsmith.core.io import ChunkMap, Chunks, TensorMap
from weightsmith.core.linalg import upcast

__all__ = ["Distances", "distance_rows"]

SAMPLE = 1 << 13
"""Weights of a chunk that are compared, at evenly spaced places: about 1 % error of one chunk, less of a network."""


class Distances:
    """Sums of squares over the tensors that are merged, added up chunk by chunk while they are merged.

    Parameters
    ----------
    count : int
        Number of networks; they are the last of a map's parts.
    """

    def __init__(self, count: int) -> None:
        self._products = torch.zeros(count, count, dtype=torch.float64)
        self._squares = torch.zeros(count, dtype=torch.float64)
        self._lock = threading.Lock()

    def watched(self, tensor_map: TensorMap) -> TensorMap:
        """Return the map that also measures."""

        def watching(name: str, chunks: Chunks) -> ChunkMap | None:
            chunk_map = tensor_map(name, chunks)
            if chunk_map is None:
                return None

            def mapped(parts: Sequence[Tensor], out: Tensor) -> Tensor:
                result = chunk_map(parts, out)
                self._add(result, parts[-len(self._squares) :])
                return result

            return mapped

        return watching

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return one row per network, as :func:`distance_rows` does."""
        squares = self._products.diagonal()
        between = (squares[:, None] + squares - 2 * self._products).clamp_min_(0).sqrt_()
        return distance_rows(names, self._squares.sqrt().tolist(), squares.sqrt().tolist(), between.tolist())

    def _add(self, merged: Tensor, networks: Sequence[Tensor]) -> None:
        """Add a chunk: products of the differences from the result, which is near all networks, so nothing cancels."""
        merged, *networks = (torch.view_as_real(x).flatten() if x.is_complex() else x for x in (merged, *networks))
        step = len(merged) // SAMPLE | 1
        result, *parts_P = (upcast(each[::step].contiguous()) for each in (merged, *networks))
        difference_NP = torch.stack([part_P.to(result) - result for part_P in parts_P])
        share = len(merged) / max(len(result), 1)
        products = (difference_NP @ difference_NP.T).double() * share
        squares = torch.stack([torch.dot(part_P, part_P) for part_P in parts_P]).double() * share
        with self._lock:
            self._products += products.cpu()
            self._squares += squares.cpu()


def distance_rows(
    names: Sequence[str], norms: Sequence[float], to_result: Sequence[float], between: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """Return what a result says of its inputs: per network its distances, relative to its norm.

    Parameters
    ----------
    names : sequence of str
        Of the networks.
    norms, to_result : sequence of float
        Their norms, and their distances from the result.
    between : sequence of sequence of float
        Their distances from each other.

    Examples
    --------
    >>> distance_rows(["a", "b"], [2.0, 4.0], [1.0, 1.0], [[0.0, 2.0], [2.0, 0.0]])[1]
    {'network': 'b', 'to_result': 0.25, 'to_others': [0.5, 0.0]}
    """

    def share(distance: float, norm: float) -> float:
        return distance / norm if norm else math.inf if distance else 0.0

    return [
        {"network": name, "to_result": share(result, norm), "to_others": [share(other, norm) for other in others]}
        for name, norm, result, others in zip(names, norms, to_result, between, strict=True)
    ]
