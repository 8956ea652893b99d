r"""Which phrases to label: clusters of part-of-speech counts, and the same fraction of each.

Section II of N. Diwan, D. Batra, G. Bagler, *A Named Entity Based Approach to Model Recipes*, ICDE Workshops 2020,
arXiv:2004.12184. A phrase is a vector of the counts of 36 Penn part-of-speech tags, each divided by its range over the
phrases; spherical k-means maximizes the cosine :math:`\sum_i x_i \cdot c_{k(i)}` of rows of length one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.language import load_parser

if TYPE_CHECKING:
    from spacy.language import Language

__all__ = ["PENN_TAGS", "SphericalClusters", "cluster_sample", "penn_tags", "pos_vectors", "spherical_k_means"]

PENN_TAGS = (
    *("CC", "CD", "DT", "EX", "FW", "IN", "JJ", "JJR", "JJS", "LS", "MD", "NN", "NNS", "NNP", "NNPS", "PDT", "POS"),
    *("PRP", "PRP$", "RB", "RBR", "RBS", "RP", "SYM", "TO", "UH", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ", "WDT"),
    *("WP", "WP$", "WRB"),
)
"""The word tags of the Penn treebank."""

CLUSTERS = 25


def penn_tags(phrases: Sequence[Sequence[str]], *, nlp: Language | None = None) -> list[list[str]]:
    """Penn part-of-speech tags of phrases that are split already.

    Parameters
    ----------
    phrases : sequence of sequences of str
        Tokens.
    nlp : Language, optional
        A spaCy pipeline with a tagger; the small English model by default.

    Raises
    ------
    MissingDependencyError
        If spaCy or its model is not installed.
    """
    nlp = load_parser() if nlp is None else nlp
    from spacy.tokens import Doc  # after `load_parser`, which says what is missing

    docs = (Doc(nlp.vocab, words=list(words)) for words in phrases)
    with nlp.select_pipes(enable=["tok2vec", "tagger"]):
        return [[token.tag_ for token in doc] for doc in nlp.pipe(docs, batch_size=512)]


def pos_vectors(tags: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Counts of the Penn tags of each phrase, each column divided by its range.

    Parameters
    ----------
    tags : sequence of sequences of str
        Tags of each phrase; those of signs are not counted.

    Returns
    -------
    ndarray, shape (phrases, 36)
        The minimum is not subtracted. A column that is the same everywhere becomes 1, or 0 if it is 0.

    Examples
    --------
    >>> vectors = pos_vectors([["CD", "NNS"], ["CD", "NN", "NN"]])
    >>> vectors[:, [PENN_TAGS.index(tag) for tag in ("CD", "NN", "NNS")]].tolist()
    [[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    """
    number = {tag: place for place, tag in enumerate(PENN_TAGS)}
    counts = np.zeros((len(tags), len(PENN_TAGS)))
    for row, names in enumerate(tags):
        for name in names:
            # Whole tags: the authors count substrings, so that their NN counts NNS, NNP and NNPS too.
            if name in number:
                counts[row, number[name]] += 1
    if not len(tags):
        return counts
    extent = np.ptp(counts, axis=0)
    return np.where(extent > 0, counts / np.where(extent > 0, extent, 1), counts > 0)


@dataclass(frozen=True, slots=True)
class SphericalClusters:
    """What `spherical_k_means` found.

    Attributes
    ----------
    labels : ndarray of int, shape (rows,)
        Cluster of each row; -1 for rows of zeros.
    centers : ndarray, shape (clusters, columns)
        Mean directions, of length one.
    inertia : tuple of float
        Sum of (1 - cosine) at each iteration; never increases.
    """

    labels: NDArray[np.int64]
    centers: NDArray[np.float64]
    inertia: tuple[float, ...]


def spherical_k_means(
    rows: NDArray[np.float64], clusters: int = CLUSTERS, *, random_state: int = 0, max_iterations: int = 100
) -> SphericalClusters:
    """Cluster rows by direction.

    Parameters
    ----------
    rows : ndarray, shape (rows, columns)
        Any lengths; rows of zeros belong to no cluster.
    clusters : int, default: 25
        At most the number of different directions.
    random_state : int, default: 0
        Of the first centers, which are chosen far from each other (k-means++ on 1 - cosine).
    max_iterations : int, default: 100
        Stops earlier when no row changes its cluster.

    Raises
    ------
    RecipeError
        If there are fewer rows that are not zero than clusters, or a value is not finite.

    Examples
    --------
    >>> found = spherical_k_means(np.array([[1.0, 0], [5, 0], [0, 2], [0, 0]]), 2)
    >>> bool(found.labels[0] == found.labels[1] != found.labels[2]), int(found.labels[3])
    (True, -1)
    """
    if not np.isfinite(rows).all():
        raise RecipeError("rows to cluster", found="a value that is not finite", expected="finite numbers")
    length = np.linalg.norm(rows, axis=1)
    used = np.flatnonzero(length)
    if not 1 <= clusters <= len(used):
        raise RecipeError("clusters", found=clusters, expected=f"1 to {len(used)}, the rows that are not zero")
    unit = rows[used] / length[used, None]
    rng = np.random.default_rng(random_state)
    centers = unit[[rng.integers(len(unit))]]
    for _ in range(clusters - 1):
        distance = np.maximum(1 - (unit @ centers.T).max(1), 0)
        total = distance.sum()
        share = distance / total if total > 1e-12 else np.full(len(unit), 1 / len(unit))
        centers = np.vstack([centers, unit[rng.choice(len(unit), p=share)]])
    labels, inertia = np.full(len(unit), -1), []
    for _ in range(max_iterations):
        cosine = unit @ centers.T
        found = cosine.argmax(1)
        inertia.append(float((1 - cosine[np.arange(len(unit)), found]).sum()))
        if (found == labels).all():
            break
        labels = found
        sums = np.zeros_like(centers)
        np.add.at(sums, labels, unit)
        norm = np.linalg.norm(sums, axis=1, keepdims=True)
        centers = np.where(norm > 0, sums / np.where(norm > 0, norm, 1), centers)
    every = np.full(len(rows), -1)
    every[used] = labels
    return SphericalClusters(every, centers, tuple(inertia))


def cluster_sample(labels: NDArray[np.int64], size: int, *, random_state: int = 0) -> NDArray[np.int64]:
    """Rows drawn at random, the same fraction of every cluster.

    Parameters
    ----------
    labels : ndarray of int
        Cluster of each row.
    size : int
        How many rows; fractions are rounded so that they add up to it (largest remainders).
    random_state : int, default: 0
        Of the draw.

    Returns
    -------
    ndarray of int, shape (size,)
        Numbers of the rows, ascending.

    Raises
    ------
    RecipeError
        If ``size`` is not between 1 and the number of rows.

    Examples
    --------
    >>> chosen = cluster_sample(np.array([0] * 6 + [1] * 3), 3)
    >>> int((chosen < 6).sum()), int((chosen >= 6).sum())
    (2, 1)
    """
    if not 1 <= size <= len(labels):
        raise RecipeError("phrases to draw", found=size, expected=f"1 to {len(labels)}")
    rng = np.random.default_rng(random_state)
    names, counts = np.unique(labels, return_counts=True)
    exact = counts * (size / len(labels))
    share = np.floor(exact).astype(int)
    share[np.argsort(share - exact, kind="stable")[: size - share.sum()]] += 1
    parts = [
        rng.choice(np.flatnonzero(labels == name), count, replace=False)
        for name, count in zip(names, share, strict=True)
    ]
    return np.sort(np.concatenate(parts))
