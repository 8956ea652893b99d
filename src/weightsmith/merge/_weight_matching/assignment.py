"""The linear assignment of every matching: which of the second network's units goes to which place."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightsmith.core.errors import NonFiniteError
from weightsmith.core.linalg import is_finite

__all__ = ["assign"]


def assign(cost: Float[Tensor, "n n"], dual: Float[Tensor, "n"] | None = None) -> Int[Tensor, "n"]:
    """Find the permutation of largest total: row ``i`` gets column ``perm[i]``.

    Parameters
    ----------
    cost : Tensor of shape (n, n)
        Score of each column for each row.
    dual : float64 Tensor of shape (n,), optional
        Dual variables of the columns that solved a similar problem, or zeros. Where numba is installed the search
        starts from them, which does not change the total but takes up to ten times less time, and they are set to those
        of this solution.

    Raises
    ------
    NonFiniteError
        If a number is NaN or infinite.

    Examples
    --------
    >>> assign(torch.tensor([[0.0, 1.0], [4.0, 0.0]]))
    tensor([1, 0])
    """
    best = cost.max(1).indices
    if len(best.unique()) == len(best):  # every row has its largest number, which no other row wants
        return best.cpu()
    cost = cost.cpu()
    if not is_finite(cost):
        raise NonFiniteError("products of the weights overflow", do="Give the weights in float64.")
    if dual is None or find_spec("numba") is None:
        return torch.from_numpy(linear_sum_assignment(cost.double().numpy(), maximize=True)[1])
    from weightsmith.merge._weight_matching.kernels.augmenting import augment

    column = torch.arange(len(cost))
    augment(cost.contiguous().numpy(), dual.numpy(), column.numpy())
    return column
