"""Features of tokens, hashed into buckets: those of the Stanford named entity recognizer's usual template.

Per token: the label prior, the token and its lower-cased form, its neighbors, prefixes and suffixes of up to five
characters, the shapes of the token and its neighbors alone and joined, and the unordered sets of the four tokens on
either side. The lower-cased form is ours; the template's pairs of shape and label transition are left out, since they
change the result by less than its noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from weightsmith_kitchen.errors import RecipeError

if TYPE_CHECKING:
    from .tokens import TokenBatch

__all__ = ["BUCKETS", "token_features"]

BUCKETS = 2**18


def token_features(
    batch: TokenBatch, *, buckets: int = BUCKETS, classes: NDArray[np.uint8] | None = None
) -> NDArray[np.int32]:
    """Ids of the features of every token.

    Parameters
    ----------
    batch : TokenBatch
        Tokens of many phrases.
    buckets : int, default: 262144
        A power of two; ids are below it.
    classes : ndarray of uint8, shape (tokens,), optional
        Class of each token in a dictionary, as a feature alone and joined with the token before and the neighbors'
        classes. 0 for a token that is not in it.

    Returns
    -------
    ndarray of int32, shape (tokens, features)
        Ids; -1 where a feature is absent (a short token has few affixes).

    Raises
    ------
    RecipeError
        If ``buckets`` is no power of two up to 2^30.

    Examples
    --------
    >>> from weightsmith_kitchen.phrases.tokens import TokenBatch
    >>> ids = token_features(TokenBatch.from_forms([["red", "onion"], ["onion"]]))
    >>> ids.shape, bool(ids[1, 1] == ids[2, 1])
    ((3, 33), True)
    """
    from .kernels.chain import feature_ids

    if buckets < 2 or buckets > 2**30 or buckets & (buckets - 1):
        raise RecipeError("buckets", found=buckets, expected="a power of two up to 2**30")
    classes = np.empty(0, np.uint8) if classes is None else classes
    return feature_ids(batch.chars, batch.offsets, batch.first, classes, buckets)
