"""Sparse codes and factors as scikit-learn estimators."""

from __future__ import annotations

from weightsmith.core.lazy import lazily

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

__getattr__, __dir__ = lazily(__name__, _HOMES)
