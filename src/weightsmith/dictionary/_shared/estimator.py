"""The part of scikit-learn's contract that all dictionaries have alike.

The estimators are dataclasses: every hyper-parameter is declared once, with its default, and the generated constructor
stores it unchanged, as scikit-learn demands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from torch import Tensor

from weightsmith.core.linalg import upcast

__all__ = ["DictionaryEstimator", "as_numpy", "as_tensor"]


class DictionaryEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A transformer with one output per atom that keeps float32 and float64."""

    n_features_in_: int

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def as_numpy(values: Any) -> Any:
    """Return a tensor as an array, half precision in float32; anything else unchanged.

    Examples
    --------
    >>> as_numpy(torch.ones(2, dtype=torch.bfloat16))
    array([1., 1.], dtype=float32)
    """
    return upcast(values.detach()).cpu().numpy() if isinstance(values, Tensor) else values


def as_tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor, without a copy where its memory layout allows it.

    Examples
    --------
    >>> as_tensor(np.ones(2))
    tensor([1., 1.], dtype=torch.float64)
    """
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
