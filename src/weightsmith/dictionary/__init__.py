"""Sparse codes and factors as scikit-learn estimators."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "BSC": "weightsmith.dictionary.prosper",
    "DSC": "weightsmith.dictionary.prosper",
    "GSC": "weightsmith.dictionary.prosper",
    "MCA": "weightsmith.dictionary.prosper",
    "MMCA": "weightsmith.dictionary.prosper",
    "OnlineOrthogonalDictionary": "weightsmith.dictionary.online_orthogonal",
    "SupervisedDictionaryClassifier": "weightsmith.dictionary.supervised",
    "TSC": "weightsmith.dictionary.prosper",
}
"""The module of every name offered here; imported when the name is used, as scikit-learn is an extra."""

__all__ = [
    "BSC",
    "DSC",
    "GSC",
    "MCA",
    "MMCA",
    "TSC",
    "OnlineOrthogonalDictionary",
    "SupervisedDictionaryClassifier",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
