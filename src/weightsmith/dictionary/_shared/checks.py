"""Checks of data, as ``fit`` makes them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse
from torch import Tensor

from weightsmith.core.errors import NonFiniteError

__all__ = ["moderate"]


def moderate(X: Any, power: float = 2) -> Any:
    """Return the data, an array, CSR matrix or tensor, if the sums of their squares and powers do not overflow."""
    values = X.data if scipy.sparse.issparse(X) else X.detach().cpu().numpy() if isinstance(X, Tensor) else X
    largest = float(max(values.max(), -values.min())) if values.size else 0.0
    limit = math.sqrt(float(np.finfo(values.dtype).max)) / max(values.size, 1)
    if power > 2:  # of the rows' norms
        limit = min(limit, (float(np.finfo(values.dtype).max) / max(values.size, 1)) ** (1 / power) / X.shape[1] ** 0.5)
    if largest > limit:
        raise NonFiniteError(
            "squares of X overflow" if power == 2 else f"powers {power:g} of X overflow",
            found=f"values up to {largest:.3g} in {values.dtype}",
            expected=f"up to {limit:.3g}",
            do="Divide X by a constant.",
        )
    return X
