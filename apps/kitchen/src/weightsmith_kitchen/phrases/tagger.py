"""IngredientTagger: a label for every token of an ingredient line, by a linear-chain CRF over hashed features.

N. Diwan, D. Batra, G. Bagler, *A Named Entity Based Approach to Model Recipes*, ICDE Workshops 2020, arXiv:2004.12184.
The emission of a token is the sum of its features' rows of a table; the objective is that of `LinearChainCRF` plus
``l2`` times the sum of the squared weights, minimized by L-BFGS over all phrases at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from weightsmith.core.io import atomic_output
from weightsmith_kitchen.errors import ModelError, RecipeError

from .card import model_card
from .features import BUCKETS, token_features
from .spans import SpanScore, span_score, spans_of_tags
from .tokens import Token, TokenBatch, tokenize_lines

__all__ = ["DIWAN", "IngredientTagger", "TaggedLine", "TaggedLines", "TaggedSpan", "TokenTagger", "default_tagger"]

DIWAN = ("O", "NAME", "STATE", "UNIT", "QUANTITY", "SIZE", "TEMP", "DF")
"""The paper's labels: name, state (ground, thawed), unit, quantity, size, temperature (hot, frozen), dry or fresh."""

TAG_SETS: Mapping[str, tuple[str, ...]] = {"diwan": DIWAN}
FORMAT = 1
SHIPPED = Path(__file__).with_name("model")
BATCH = 4096
"""Lines that are tagged at once, so that their features stay in the cache."""


@dataclass(frozen=True, slots=True)
class TaggedSpan:
    """A run of tokens with one label.

    Attributes
    ----------
    start, end : int
        Characters of the line.
    label : str
        Its label.
    text : str
        The line's own characters.
    confidence : float
        Least probability of the label over its tokens.
    """

    start: int
    end: int
    label: str
    text: str
    confidence: float


@dataclass(frozen=True, slots=True)
class TaggedLine:
    """A line with its tokens, their labels and how probable these are.

    Attributes
    ----------
    text : str
        The line.
    tokens : list of Token
        With places in the line.
    tags : list of str
        One per token.
    confidences : list of float
        Probability of each tag given the whole line.
    """

    text: str
    tokens: list[Token]
    tags: list[str]
    confidences: list[float]

    @property
    def spans(self) -> list[TaggedSpan]:
        """Maximal runs of one label other than ``O``."""
        found = []
        for first, stop, label in spans_of_tags(self.tags):
            start, end = self.tokens[first].start, self.tokens[stop - 1].end
            confidence = min(self.confidences[first:stop])
            found.append(TaggedSpan(start, end, label, self.text[start:end], confidence))
        return found


class TaggedLines(Sequence[TaggedLine]):
    """Tagged lines, held in arrays; a `TaggedLine` is made when it is asked for."""

    def __init__(self, texts: Sequence[str], parts: Sequence[tuple[TokenBatch, Any, Any]], labels: Sequence[str]):
        self._texts, self._parts, self._labels = texts, parts, labels

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, place: int) -> TaggedLine: ...
    @overload
    def __getitem__(self, place: slice) -> list[TaggedLine]: ...
    def __getitem__(self, place: int | slice) -> TaggedLine | list[TaggedLine]:
        """One line, or a list of them."""
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        batch, tags, confidences = self._parts[place // BATCH]
        line = place % BATCH
        part = slice(batch.first[line], batch.first[line + 1])
        names = [self._labels[tag] for tag in tags[part].tolist()]
        return TaggedLine(self._texts[place], batch.tokens(line), names, confidences[part].tolist())

    def __iter__(self) -> Iterator[TaggedLine]:
        return (self[place] for place in range(len(self)))

    @property
    def token_count(self) -> int:
        """Tokens of all lines."""
        return sum(len(batch.starts) for batch, _, _ in self._parts)


class TokenTagger:
    """Labels the tokens of lines of any kind: what `IngredientTagger` and `InstructionTagger` have in common.

    Parameters
    ----------
    tags : str or sequence of str
        Labels it may learn: the name of a tag set ("diwan" for the paper's eight, `DIWAN`), or the labels, with ``O``
        for none.
    buckets : int, default: 262144
        Rows of the table of hashed features, a power of two.
    l2 : float, default: 0.1
        Weight of the sum of squared weights.
    max_iterations : int, default: 100
        Iterations of L-BFGS at most.
    tolerance : float, default: 1e-4
        Relative decrease of the objective at which L-BFGS stops.
    """

    shipped: Path
    """Folder of the tagger of this kind that ships with the package."""

    def __init__(
        self,
        tags: str | Sequence[str],
        *,
        buckets: int = BUCKETS,
        l2: float = 0.1,
        max_iterations: int = 100,
        tolerance: float = 1e-4,
    ) -> None:
        self.tags, self.buckets, self.l2 = tags, buckets, l2
        self.max_iterations, self.tolerance = max_iterations, tolerance

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as scikit-learn asks for them."""
        return {name: getattr(self, name) for name in ("tags", "buckets", "l2", "max_iterations", "tolerance")}

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments; takes effect at the next `fit`."""
        for name, value in params.items():
            if name not in self.get_params():
                raise RecipeError("parameter", found=name, expected=", ".join(self.get_params()))
            setattr(self, name, value)
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the table's columns.

        Raises
        ------
        RecipeError
            If the tag set is not known, or has fewer than two labels or one twice.
        """
        if isinstance(self.tags, str):
            if self.tags not in TAG_SETS:
                raise RecipeError("tags", found=self.tags, expected=" or ".join(TAG_SETS), do="Or list the labels.")
            return TAG_SETS[self.tags]
        labels = tuple(self.tags)
        if len(set(labels)) < max(2, len(labels)):
            raise RecipeError("tags", found=labels, expected="two or more different labels")
        return labels

    def fit(self, tokens: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> Self:
        """Learn from labeled phrases.

        Parameters
        ----------
        tokens : sequence of sequences of str
            The tokens of each phrase.
        tags : sequence of sequences of str
            Their labels.

        Returns
        -------
        Self
            The tagger.

        Raises
        ------
        RecipeError
            If a phrase has not one label per token, a label is not of the tag set, or fewer than two labels occur. It
            is a `ValueError` too.
        """
        from scipy.optimize import minimize

        from .kernels.chain import loss_and_gradient

        labels = self.labels
        gold = _numbered(tokens, tags, labels)
        batch = TokenBatch.from_forms(tokens)
        ids = self._features(batch)
        found, inverse = np.unique(ids, return_inverse=True)
        absent = int(found[0] < 0)
        rows, used = inverse.reshape(ids.shape).astype(np.int32) - absent, found[absent:]
        size, shape = len(labels) ** 2, (len(used), len(labels))

        def objective(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            transitions, table = weights[:size].reshape(len(labels), -1), weights[size:].reshape(shape)
            gradient = 2 * self.l2 * weights
            loss, moves = loss_and_gradient(rows, batch.first, gold, table, transitions, gradient[size:].reshape(shape))
            gradient[:size] += moves.ravel()
            loss += self.l2 * float(weights @ weights)
            if not np.isfinite(loss):
                raise RecipeError("loss of the CRF", found=loss, expected="a finite number", do="Raise l2.")
            return loss, gradient

        options = {"maxiter": self.max_iterations, "ftol": self.tolerance * 1e-2, "gtol": 1e-5, "maxcor": 8}
        start = np.zeros(size + len(used) * len(labels))
        outcome = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
        self.transitions_ = outcome.x[:size].reshape(len(labels), -1).astype(np.float32)
        self.table_ = np.zeros((self.buckets, len(labels)), np.float32)
        self.table_[used] = outcome.x[size:].reshape(shape)
        self.loss_, self.iterations_ = float(outcome.fun), int(outcome.nit)
        return self

    def predict(self, tokens: Sequence[Sequence[str]]) -> list[list[str]]:
        """Labels of phrases that are split already.

        Parameters
        ----------
        tokens : sequence of sequences of str
            The tokens of each phrase, split as in the training data.

        Returns
        -------
        list of list of str
            One label per token.
        """
        batch = TokenBatch.from_forms(tokens)
        found = self._decoded(batch)
        names, cuts = np.array(self.labels, object)[found].tolist(), batch.first.tolist()
        return [names[a:b] for a, b in pairwise(cuts)]

    def score(self, tokens: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> float:
        """Micro F1 of exact spans with their label; `evaluate` has the counts."""
        return self.evaluate(tokens, tags).f1

    def evaluate(self, tokens: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> SpanScore:
        """Right, spurious and missed spans, in total and per label."""
        return span_score(tags, self.predict(tokens))

    def tag(self, text: str) -> TaggedLine:
        """Tokens, labels and spans of one line."""
        return self.tag_many([text])[0]

    def tag_many(self, texts: Sequence[str]) -> TaggedLines:
        """Tokens, labels and spans of many lines at once.

        Parameters
        ----------
        texts : sequence of str
            One ingredient each; an empty one has no tokens.

        Returns
        -------
        TaggedLines
            A sequence of `TaggedLine`, one per text.

        Raises
        ------
        RecipeError
            If a text is no string, or the tagger was not fitted.
        """
        from .kernels.chain import marginals

        if isinstance(texts, str):
            raise RecipeError("texts", found="one string", expected="a list of strings", do="Call tag for one line.")
        texts, parts = list(texts), []
        for start in range(0, len(texts), BATCH):
            batch = tokenize_lines(texts[start : start + BATCH])
            ids = self._features(batch)
            tags = self._decoded(batch, ids)
            parts.append((batch, tags, marginals(ids, batch.first, self.table_, self.transitions_, tags)))
        return TaggedLines(texts, parts, self.labels)

    def _features(self, batch: TokenBatch) -> NDArray[np.int32]:
        return token_features(batch, buckets=self.buckets)

    def _decoded(self, batch: TokenBatch, ids: NDArray[np.int32] | None = None) -> NDArray[np.int8]:
        from .kernels.chain import decode

        if not hasattr(self, "table_"):
            raise RecipeError("the tagger was not fitted", do="Call fit, or load one with from_pretrained or default.")
        ids = self._features(batch) if ids is None else ids
        return decode(ids, batch.first, self.table_, self.transitions_)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        half: bool = False,
        extra: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Write the tagger: ``config.json``, ``model.safetensors`` (the rows that are not zero) and a model card.

        Parameters
        ----------
        folder : path
            A folder that does not exist, unless ``overwrite``.
        overwrite : bool, default: False
            Replace the folder.
        half : bool, default: False
            Store the table in half precision.
        extra : mapping, optional
            What else to say in ``config.json``: where the data came from, what was measured.
        """
        from safetensors.numpy import save

        if not hasattr(self, "table_"):
            raise RecipeError("the tagger was not fitted", do="Call fit before saving.")
        used = np.flatnonzero(np.any(self.table_ != 0, axis=1)).astype(np.int32)
        weights = self.table_[used].astype(np.float16 if half else np.float32)
        config = {"format": FORMAT, **self.get_params(), "labels": list(self.labels), **extra}
        with atomic_output(folder, overwrite=overwrite) as written:
            written.mkdir(exist_ok=True)
            (written / "README.md").write_text(model_card(type(self).__name__, self.labels, extra), "utf-8")
            (written / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
            arrays = {"rows": used, "weights": weights, "transitions": self.transitions_}
            (written / "model.safetensors").write_bytes(save(arrays))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a tagger that `save_pretrained` wrote.

        Raises
        ------
        ModelError
            If a file is missing, broken, or of another format.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            if config["format"] != FORMAT:
                raise ModelError(f"{folder}: format", found=config["format"], expected=FORMAT, do="Train it again.")
            names = ("tags", "buckets", "l2", "max_iterations", "tolerance")
            tagger = cls(**{name: config[name] for name in names})
            arrays = load_file(folder / "model.safetensors")
            table = np.zeros((tagger.buckets, len(tagger.labels)), np.float32)
            table[arrays["rows"]] = arrays["weights"]
            tagger.table_, tagger.transitions_ = table, arrays["transitions"].astype(np.float32)
        except (OSError, KeyError, TypeError, ValueError, IndexError, SafetensorError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"{folder}: not a saved tagger ({type(error).__name__}: {error})",
                do="Train it again, or name its folder.",
            ) from error
        if tagger.transitions_.shape != (len(tagger.labels),) * 2 or not np.isfinite(table).all():
            raise ModelError(f"{folder}/model.safetensors", found="weights that do not fit config.json")
        return tagger

    @classmethod
    def default(cls) -> Self:
        """The tagger that ships with the package; ``NOTICE`` beside its folder says what it was trained on."""
        return cls.from_pretrained(cls.shipped)


class IngredientTagger(TokenTagger):
    """Labels the tokens of ingredient lines.

    Parameters
    ----------
    tags : str or sequence of str, default: "diwan"
        Labels it may learn: "diwan" for the paper's eight (`DIWAN`), or their names, with ``O`` for no label.
    buckets : int, default: 262144
        Rows of the table of hashed features, a power of two.
    l2 : float, default: 0.1
        Weight of the sum of squared weights.
    max_iterations : int, default: 100
        Iterations of L-BFGS at most.
    tolerance : float, default: 1e-4
        Relative decrease of the objective at which L-BFGS stops.

    Examples
    --------
    >>> tokens = [["2", "cups", "flour"], ["1", "onion"], ["3", "cups", "rice"]]
    >>> tags = [["QUANTITY", "UNIT", "NAME"], ["QUANTITY", "NAME"], ["QUANTITY", "UNIT", "NAME"]]
    >>> tagger = IngredientTagger().fit(tokens, tags)
    >>> [(span.text, span.label) for span in tagger.tag("4 cups onion").spans]
    [('4', 'QUANTITY'), ('cups', 'UNIT'), ('onion', 'NAME')]
    """

    shipped = SHIPPED

    def __init__(self, tags: str | Sequence[str] = "diwan", **options: Any) -> None:
        super().__init__(tags, **options)


def _numbered(
    tokens: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], labels: Sequence[str]
) -> NDArray[np.int8]:
    """The number of every tag, after checking that they fit the tokens."""
    if len(tokens) != len(tags):
        raise RecipeError("phrases with tags", found=len(tags), expected=len(tokens))
    numbers = {label: number for number, label in enumerate(labels)}
    for place, (words, names) in enumerate(zip(tokens, tags, strict=True)):
        if len(words) != len(names):
            raise RecipeError(f"tags of phrase {place}", found=len(names), expected=f"{len(words)}, one per token")
        for name in names:
            if name not in numbers:
                raise RecipeError(f"tag in phrase {place}", found=repr(name), expected=", ".join(labels))
    found = np.fromiter((numbers[name] for names in tags for name in names), np.int8)
    if len(np.unique(found)) < 2:
        kinds = sorted({labels[number] for number in found.tolist()})
        raise RecipeError("labels in the training phrases", found=kinds or "none", expected="two or more")
    return found


@lru_cache(maxsize=1)
def default_tagger() -> IngredientTagger:
    """`IngredientTagger.default`, loaded once per process."""
    return IngredientTagger.default()
