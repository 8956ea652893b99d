r"""The classifier of n-grams, trained on the ontology's names alone.

An n-gram's vector is the mean of its words' character n-grams, centered and scaled to length one,

.. math:: v = \frac{\bar e - \operatorname{mean}(\bar e)}{\lVert \bar e - \operatorname{mean}(\bar e) \rVert},

and concept :math:`c` gets the logit :math:`s \, v \cdot w_c`. The rows :math:`w_c` start as the mean vector of the
concept's names. One more row stands for "no concept"; its examples are n-grams of the ontology's own definitions.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from weightsmith.core.progress import track
from weightsmith_phenotype.dictionary import name_words, usable_names
from weightsmith_phenotype.errors import TaggerError
from weightsmith_phenotype.kernels.embed import products
from weightsmith_phenotype.ontology import Ontology
from weightsmith_phenotype.substitutions import NOTHING, learn_substitutions
from weightsmith_phenotype.tokens import segments, tokenize
from weightsmith_phenotype.words import FUNCTION_WORDS, LINKS, code, stem

__all__ = ["Classifier", "negative_ngrams", "train_classifier"]

BUCKETS, SIZE, SCALE = 1 << 16, 96, 20.0
"""Rows of the table of character n-grams, length of a vector, factor of the logits."""

SHORTEST_PIECE, LONGEST_PIECE = 2, 5

LONGEST_NGRAM = 8


@lru_cache(maxsize=1 << 16)
def word_features(word: str) -> NDArray[np.int64]:
    """Rows of the table for a word: itself and its pieces of two to five characters, its ends marked."""
    marked = f"<{word}>"
    pieces = [
        marked[start : start + length]
        for length in range(SHORTEST_PIECE, LONGEST_PIECE + 1)
        for start in range(len(marked) - length + 1)
    ]
    return np.array(
        [zlib.crc32(piece.encode(errors="surrogatepass")) % BUCKETS for piece in (f"={word}", *pieces)], np.int64
    )


def negative_ngrams(
    texts: Iterable[str], count: int, *, names: frozenset[tuple[str, ...]], seed: int = 123, at_most: bool = False
) -> list[tuple[str, ...]]:
    """Draw n-grams of running text that name no concept.

    Parameters
    ----------
    texts : iterable of str
        Running text of the domain.
    count : int
        How many distinct n-grams.
    names : frozenset of tuple of str
        Words of all names; an n-gram that is one, or is one with function words around it, is not drawn.
    seed : int, default: 123
        Of the random choice.
    at_most : bool, default: False
        Take all that the texts have where they have fewer.

    Raises
    ------
    TaggerError
        If the texts do not have as many, unless ``at_most``.
    """
    runs = [[token.form for token in run] for text in texts for run in segments(tokenize(text))]
    sizes = [sum(max(0, len(run) - size + 1) for size in range(1, LONGEST_NGRAM + 1)) for run in runs]
    ends = np.cumsum(sizes, dtype=np.int64)
    chosen: dict[tuple[str, ...], None] = {}
    for place in np.random.default_rng(seed).permutation(int(ends[-1]) if runs else 0):
        if len(chosen) == count:
            break
        run = int(np.searchsorted(ends, place, side="right"))
        ngram = _nth(runs[run], int(place - ends[run] + sizes[run]))
        outer = {ngram[0], ngram[-1]}
        if "," not in ngram and not outer & LINKS and not outer & FUNCTION_WORDS and not _is_name(ngram, names):
            chosen[ngram] = None
    if len(chosen) < count and not at_most:
        raise TaggerError(
            "negative n-grams", found=f"{len(chosen)} in the text", expected=f"at least {count}", do="Give more text."
        )
    return list(chosen)


def _nth(words: list[str], number: int) -> tuple[str, ...]:
    """The n-gram at a place among all of a run, shorter ones first."""
    for size in range(1, LONGEST_NGRAM + 1):
        many = len(words) - size + 1
        if number < many:
            return tuple(words[number : number + size])
        number -= many
    raise AssertionError("the sizes of runs do not fit")


def _is_name(ngram: tuple[str, ...], names: frozenset[tuple[str, ...]]) -> bool:
    content = sum(word not in LINKS for word in ngram)
    return any(
        ngram[start:end] in names and sum(word not in LINKS for word in ngram[start:end]) == content
        for start in range(len(ngram))
        for end in range(start + 1, len(ngram) + 1)
    )


@dataclass(eq=False)
class Classifier:
    """Vectors of character n-grams and of concepts.

    Attributes
    ----------
    table : float32 array, [BUCKETS, SIZE]
        A vector per character n-gram.
    concepts : float32 array, [concepts + 1, SIZE]
        A vector of length one per concept; the last stands for "no concept".
    gate : float32 array, [SIZE + 1]
        Weights and bias of a linear test, with which most n-grams of running text are left out.
    stems : uint64 array, [stems]
        Sorted codes of the stems of all names.
    starts : int32 array, [stems + 1]
        Where the concepts of each stem begin in ``members``.
    members : int32 array
        Row of each concept with the stem in a name.
    """

    table: NDArray[np.float32]
    concepts: NDArray[np.float32]
    gate: NDArray[np.float32]
    stems: NDArray[np.uint64]
    starts: NDArray[np.int32]
    members: NDArray[np.int32]

    def posting(self, stem_code: int) -> int:
        """The place of a stem in `stems`, or -1."""
        place = int(np.searchsorted(self.stems, np.uint64(stem_code)))
        return place if place < len(self.stems) and self.stems[place] == stem_code else -1

    def vectors(self, ngrams: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """The vectors of n-grams, [ngrams, SIZE]."""
        means = np.stack([self.table[np.concatenate([word_features(w) for w in ngram])].mean(0) for ngram in ngrams])
        centered = means - means.mean(1, keepdims=True)
        return centered / (np.linalg.norm(centered, axis=1, keepdims=True) + 1e-12)

    def best(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Probability and index of the most probable concept per vector; index ``len(concepts) - 1`` is none of them.

        Raises
        ------
        TaggerError
            If a logit is not finite.
        """
        logits = np.empty((len(vectors), len(self.concepts)), np.float32)
        products(vectors, self.concepts, logits)
        logits *= SCALE
        top = logits.argmax(1)
        highest = logits[np.arange(len(top)), top]
        if not np.isfinite(highest).all():
            raise TaggerError("the classifier's logits", found="NaN or infinite values", do="Train the tagger again.")
        logits -= highest[:, None]
        return 1 / np.exp(logits, out=logits).sum(1), top


def train_classifier(
    ontology: Ontology,
    *,
    negative_text: Iterable[str] | None = None,
    negatives: int = 60_000,
    hidden: Iterable[tuple[str, str]] = (),
    epochs: int = 4,
    batch_size: int = 512,
    learning_rate: float = 5e-3,
    sampled: int = 4096,
    seed: int = 0,
) -> Classifier:
    """Train on the names of an ontology.

    Parameters
    ----------
    ontology : Ontology
        Every name of every concept is a positive example.
    negative_text : iterable of str, optional
        Running text; the ontology's definitions when left out.
    negatives : int, default: 60,000
        N-grams drawn from it; fewer when the definitions have fewer.
    hidden : iterable of (str, str), optional
        (Concept id, name) pairs that are not shown, for experiments.
    epochs, batch_size, learning_rate
        Of Adam, with a rate that falls to a twentieth.
    sampled : int, default: 4,096
        Concepts that a batch is compared with beside its own.
    seed : int, default: 0
        Of the order, the augmentation and the samples.
    """
    import torch

    hidden = set(hidden)
    named = [
        (tuple(name_words(name)), number)
        for number, identifier in enumerate(ontology.concepts)
        for name in usable_names(ontology, identifier)
        if (identifier, name) not in hidden
    ]
    positives = list(dict.fromkeys((words, number) for words, number in named if words))
    names = frozenset(words for words, _ in positives)
    none = len(ontology.concepts)
    if negative_text is None:
        negative_text = [ontology[identifier].definition for identifier in ontology.concepts]
        drawn = negative_ngrams(negative_text, negatives, names=names, at_most=True)
    else:
        drawn = negative_ngrams(negative_text, negatives, names=names)
    outside = [(words, none) for words in drawn]
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    exchange = _surface_exchanges(positives)

    table = torch.nn.EmbeddingBag(BUCKETS, SIZE, mode="mean")
    torch.nn.init.normal_(table.weight, std=0.1, generator=generator)
    concepts = torch.zeros(none + 1, SIZE)
    gate = torch.nn.Parameter(torch.zeros(SIZE + 1))

    def encode(ngrams: Sequence[Sequence[str]]) -> torch.Tensor:
        rows = [np.concatenate([word_features(word) for word in ngram]) for ngram in ngrams]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])[:-1]])
        vectors = table(torch.from_numpy(np.concatenate(rows)), torch.from_numpy(offsets))
        return torch.nn.functional.normalize(vectors - vectors.mean(1, keepdim=True), dim=1)

    with torch.no_grad():
        for place in range(0, len(positives), 4096):
            part = positives[place : place + 4096]
            concepts.index_add_(0, torch.tensor([n for _, n in part]), encode([words for words, _ in part]))
        concepts[none] = torch.randn(SIZE, generator=generator)
        concepts = torch.nn.functional.normalize(concepts, dim=1)
    concepts.requires_grad_()
    optimizer = torch.optim.Adam([table.weight, concepts, gate], lr=learning_rate, fused=True)
    examples = positives + outside
    steps = epochs * (-(-len(examples) // batch_size))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=steps)

    def batches() -> Iterable[list[tuple[tuple[str, ...], int]]]:
        for _ in range(epochs):
            order = rng.permutation(len(examples))
            for place in range(0, len(order), batch_size):
                yield [examples[n] for n in order[place : place + batch_size]]

    for batch in track(batches(), "training the classifier", total=steps):
        vectors = encode([_changed(words, exchange, rng) if n < none else words for words, n in batch])
        labels = torch.tensor([n for _, n in batch])
        # The softmax runs over the batch's own concepts, "none" and a sample of the others: all 17,000 would take ten
        # times as long, and the order of the most similar ones is learned as well.
        others = torch.randint(0, none, (sampled,), generator=generator)
        chosen, targets = torch.unique(torch.cat([labels, others, torch.tensor([none])]), return_inverse=True)
        logits = SCALE * vectors @ torch.nn.functional.normalize(concepts[chosen], dim=1).T
        loss = torch.nn.functional.cross_entropy(logits, targets[: len(batch)])
        named_at_all = vectors @ gate[:-1] + gate[-1]
        loss = loss + torch.nn.functional.binary_cross_entropy_with_logits(named_at_all, (labels < none).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return Classifier(
            table.weight.numpy().copy(),
            torch.nn.functional.normalize(concepts, dim=1).numpy().copy(),
            gate.numpy().copy(),
            *_index(positives),
        )


def _index(
    named: Iterable[tuple[Sequence[str], int]],
) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int32]]:
    """Stems, starts and members of `Classifier`, from the words of names and their concepts."""
    holders: dict[int, set[int]] = {}
    for words, concept in named:
        for word in words:
            if word not in LINKS:
                holders.setdefault(code(stem(word)), set()).add(concept)
    stems = sorted(holders)
    starts = np.concatenate([[0], np.cumsum([len(holders[one]) for one in stems])]).astype(np.int32)
    members = np.fromiter((n for one in stems for n in sorted(holders[one])), np.int32, int(starts[-1]))
    return np.array(stems, np.uint64), starts, members


def _surface_exchanges(positives: list[tuple[tuple[str, ...], int]]) -> dict[str, list[str]]:
    """For each word, words that it can be exchanged for, by the ontology's synonyms and the lexicon."""
    written: dict[str, str] = {}
    bags: dict[frozenset[str], list[int]] = {}
    for words, number in positives:
        for word in words:
            written.setdefault(stem(word), word)
        bags.setdefault(frozenset(stem(word) for word in words if word not in LINKS), []).append(number)
    bags.pop(frozenset(), None)
    exchanges = learn_substitutions(bags, least=0.7)
    return {
        word: [written[other] for _, other in exchanges[form] if other != NOTHING and other in written]
        for form, word in written.items()
        if form in exchanges
    }


def _changed(words: tuple[str, ...], exchange: dict[str, list[str]], rng: np.random.Generator) -> Sequence[str]:
    """The name with one word exchanged or, if it is longer than two, left out: in a third of the cases each."""
    chance = rng.random()
    if chance < 1 / 3:
        place = int(rng.integers(len(words)))
        others = exchange.get(words[place])
        if others:
            return (*words[:place], others[int(rng.integers(len(others)))], *words[place + 1 :])
    elif chance < 2 / 3 and len(words) > 2:
        place = int(rng.integers(len(words)))
        return (*words[:place], *words[place + 1 :])
    return words
