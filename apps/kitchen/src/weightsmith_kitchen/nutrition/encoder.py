"""Sentence vectors of the embedded MiniLM, which is loaded once per process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.core.progress import stage

__all__ = ["minilm"]


def minilm(texts: Sequence[str]) -> NDArray[np.float32]:
    """Sentence vectors of unit length, (N, 384); an empty text is read as a blank.

    Raises
    ------
    MissingDependencyError
        If the package of the encoder is not installed.

    Examples
    --------
    >>> minilm(["butter", "margarine"]).shape
    (2, 384)
    """
    from weightsmith.core.models import text_features

    made: NDArray[np.float32] = text_features([text or " " for text in texts], *_loaded(), batch_size=128).numpy()
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@cache
def _loaded() -> tuple[Any, Any]:
    with stage("loading the encoder of names"):
        from weightsmith.embedded import load

        return load("minilm")
