"""PhenoTagger: dictionary and classifier together find more than either, names with exchanged words more still.

Three experiments. On the test part of GSC+ (206 abstracts, in the user's data) mentions and documents are scored; the
abstracts are dealt to as many folds as there are seeds, and each seed trains a classifier of its own. Thresholds are
chosen on the 22 development abstracts by the sum of the two scores, as the paper's code does. Third, a fifth of the
synonyms is hidden from everything, and the recall of the hidden ones at a precision of .9 is measured.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed, user_data
from weightsmith_phenotype.classifier import Classifier, negative_ngrams, train_classifier
from weightsmith_phenotype.dictionary import Dictionary, name_words, usable_names
from weightsmith_phenotype.document import Document
from weightsmith_phenotype.formats import read_documents
from weightsmith_phenotype.matcher import Matcher
from weightsmith_phenotype.metrics import evaluate
from weightsmith_phenotype.ontology import Ontology
from weightsmith_phenotype.tagger import PhenoTagger

__all__ = ["DOCUMENTS", "MENTIONS", "UNSEEN", "run"]

PAPER = "The hybrid finds more than the dictionary, which finds more than the classifier (GSC+: F1 .754 and .757)."

_ORDER = (
    Ordering(better="dictionary and classifier", worse="dictionary"),
    Ordering(better="dictionary", worse="classifier"),
)
_DECLARED = (
    Ordering(better="dictionary", worse="dictionary and classifier", margin=-0.01),
    Ordering(better="exchanged words too", worse="dictionary and classifier", margin=0.01),
    Ordering(better="exchanged words, no classifier", worse="exchanged words too", margin=-0.01),
)

MENTIONS = Claim(
    slug="phenotagger",
    experiment="mentions",
    title="PhenoTagger, mentions in GSC+ abstracts",
    statement=(
        "The classifier adds at most a point to the dictionary; names with exchanged words add a point more, and with "
        "them the classifier is not missed."
    ),
    metric="F1 of mentions with the right id that overlap, 206 test abstracts",
    higher_is_better=True,
    expected=_DECLARED,
    paper=PAPER,
    claimed=_ORDER,
)

DOCUMENTS = Claim(
    slug="phenotagger",
    experiment="documents",
    title="PhenoTagger, terms of GSC+ abstracts",
    statement=MENTIONS.statement,
    metric="F1 of ids per document, macro, 206 test abstracts",
    higher_is_better=True,
    expected=_DECLARED,
    paper=PAPER,
    claimed=_ORDER,
)

UNSEEN = Claim(
    slug="phenotagger",
    experiment="unseen",
    title="PhenoTagger, synonyms that were hidden",
    statement="The classifier finds a quarter of the hidden synonyms at precision .9, exchanged words more than it.",
    metric="recall at precision .9",
    higher_is_better=True,
    expected=(
        Ordering(better="classifier", worse="dictionary", margin=0.25),
        Ordering(better="exchanged words", worse="classifier"),
    ),
)

FIRST = (
    "First declared with the hybrid ahead of the dictionary, as the paper has it: on four folds, seeds 10 to 13, it "
    "was ahead by .002 +- .006 on mentions and .001 +- .012 on documents. That it is ahead by at most a point is "
    "declared now, and all is judged on ten other folds and seeds; the abstracts are the same."
)

HIDDEN, PRECISION = 0.2, 0.9
VARIANTS, CLASSIFIER = (0.97, 0.92, 0.9, 0.86, 0.8), (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""What the thresholds are chosen from."""

OFF = {"variants": 2.0, "lists": False}
ARMS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "dictionary": ("baseline", {**OFF, "classifier": 1.0}),
    "classifier": ("baseline", {"names": False, "classifier": CLASSIFIER}),
    "dictionary and classifier": ("method", {**OFF, "classifier": CLASSIFIER}),
    "exchanged words too": ("method", {"variants": VARIANTS, "classifier": CLASSIFIER}),
    "exchanged words, no classifier": ("control", {"variants": VARIANTS, "classifier": 1.0}),
}
"""Role and settings of each arm; where there are several values one is chosen on the development abstracts."""


def run(scale: str = "cpu", seeds: Sequence[int] | None = None) -> list[ClaimResult]:
    """Run the experiments; those on GSC+ need the user's data.

    Parameters
    ----------
    scale : {"cpu"}, default: "cpu"
        Recorded with the results.
    seeds : sequence of int
        Of the classifier's training and the hidden synonyms; also the number of folds.
    """
    folder = user_data("apps/phenotagger", "PhenoTagger on GSC+")
    return [
        *([] if folder is None else abstracts(folder, scale, seeds or range(20, 30))),
        unseen(scale, seeds or range(10, 14)),
    ]


def abstracts(folder: Path, scale: str, seeds: Sequence[int]) -> list[ClaimResult]:
    """Score the arms on GSC+, a fold of the test abstracts and a classifier of its own per seed."""
    start = time.perf_counter()
    ontology = Ontology.default()
    dev, test = gsc(folder)
    dictionary = Dictionary.build(ontology)
    folds = np.array_split(np.random.default_rng(0).permutation(len(test)), len(seeds))
    chosen: list[str] = []

    def on_fold(seed: int) -> dict[str, float]:
        classifier = train_classifier(ontology, seed=seed)
        values = {}
        for name, (_, settings) in ARMS.items():
            tagger = _tuned(PhenoTagger(ontology, dictionary, classifier), settings, dev)
            chosen.append(f"{name}: {tagger.settings.variants:g}, {tagger.settings.classifier:g}")
            part = [test[place] for place in folds[list(seeds).index(seed)]]
            score = tagger.evaluate(part, resamples=0)
            values["m " + name], values["d " + name] = score.mention_relaxed.f1, score.document_macro.f1
        return values

    values = each_seed(on_fold, seeds, "GSC+")
    seconds = time.perf_counter() - start
    thresholds = "; ".join(dict.fromkeys(sorted(chosen)))
    notes = (FIRST, f"Thresholds (exchanges, classifier) chosen on the development abstracts: {thresholds}")
    results = []
    for claim, sign in ((MENTIONS, "m "), (DOCUMENTS, "d ")):
        arms = [Arm(name, role, values[sign + name]) for name, (role, _) in ARMS.items()]  # type: ignore[arg-type]
        results.append(ClaimResult.judge(claim, arms, scale=scale, seeds=seeds, seconds=seconds, notes=notes))
    return results


def unseen(scale: str, seeds: Sequence[int]) -> ClaimResult:
    """Look for synonyms that were hidden from dictionary and classifier."""
    start = time.perf_counter()
    ontology = Ontology.default()
    values = each_seed(lambda seed: hidden_synonyms(ontology, seed), seeds, "hidden synonyms")
    arms = [
        Arm("exchanged words", "method", values["exchanged words"]),
        Arm("classifier", "method", values["classifier"]),
        Arm("dictionary", "baseline", [0.0 for _ in seeds]),
    ]
    return ClaimResult.judge(UNSEEN, arms, scale=scale, seeds=seeds, seconds=time.perf_counter() - start)


def gsc(folder: Path) -> tuple[list[Document], list[Document]]:
    """The development and test abstracts of GSC+."""
    parts = []
    with zipfile.ZipFile(folder / "corpus.zip") as archive, TemporaryDirectory() as scratch:
        for part in ("dev", "test"):
            path = archive.extract(f"corpus/GSC/GSCplus_{part}_gold.tsv", scratch)
            parts.append(list(read_documents(Path(path))))
    return parts[0], parts[1]


def _tuned(tagger: PhenoTagger, settings: Mapping[str, object], dev: Sequence[Document]) -> PhenoTagger:
    """The tagger with the values that are best on the development abstracts; the first of equally good ones."""
    choices = [values if isinstance(values, tuple) else (values,) for values in settings.values()]
    best, found = -1.0, tagger
    for values in product(*choices):
        tried = tagger.with_settings(context=False, abbreviations=False, **dict(zip(settings, values, strict=True)))
        score = evaluate(dev, map(tried.tag_document, dev), tagger.ontology, resamples=0)
        total = score.mention_relaxed.f1 + score.document_macro.f1
        if total > best:
            best, found = total, tried
    return found


def hidden_synonyms(ontology: Ontology, seed: int) -> dict[str, float]:
    """Recall at precision .9 over hidden synonyms and as many n-grams of definitions, by what finds them."""
    rng = np.random.default_rng(seed)
    synonyms = [
        (identifier, name)
        for identifier in ontology.concepts
        for name in usable_names(ontology, identifier)[1:]
        if len(name_words(name)) > 1
    ]
    hidden = [synonyms[place] for place in rng.choice(len(synonyms), int(HIDDEN * len(synonyms)), replace=False)]
    dictionary = Dictionary.build(ontology, hidden=hidden)
    classifier = train_classifier(ontology, hidden=hidden, seed=seed)
    number = {identifier: place for place, identifier in enumerate(ontology.concepts)}
    names = frozenset(
        tuple(name_words(name)) for identifier in ontology.concepts for name in usable_names(ontology, identifier)
    )
    texts = [ontology[identifier].definition for identifier in ontology.concepts]
    others = [
        words for words in negative_ngrams(texts, 2 * len(hidden), names=names, seed=1000 + seed) if len(words) > 1
    ]
    cases = [(" ".join(name_words(name)), number[identifier]) for identifier, name in hidden]
    cases += [(" ".join(words), -1) for words in others[: len(hidden)]]
    matcher = Matcher(dictionary)
    exact = {
        text
        for text, _ in cases
        if any(kind == 0 and (a, b) == (0, len(text)) for a, b, _, _, kind in matcher.find(text, variants=2.0))
    }
    cases = [case for case in cases if case[0] not in exact]  # a hidden synonym that is another concept's name as well
    by_exchange = [_whole(matcher, text) for text, _ in cases]
    by_classifier = _classified(classifier, [text.split() for text, _ in cases])
    truth = np.array([concept for _, concept in cases])
    return {
        "exchanged words": _recall_at_precision(by_exchange, truth),
        "classifier": _recall_at_precision(by_classifier, truth),
    }


def _whole(matcher: Matcher, text: str) -> tuple[float, int]:
    """Score and concept of the match that covers the whole text."""
    found = [
        (score, concept) for a, b, concept, score, _ in matcher.find(text, variants=0.5) if (a, b) == (0, len(text))
    ]
    return max(found, default=(0.0, -1))


def _classified(classifier: Classifier, ngrams: Sequence[Sequence[str]]) -> list[tuple[float, int]]:
    found: list[tuple[float, int]] = []
    for place in range(0, len(ngrams), 512):
        probability, concept = classifier.best(classifier.vectors(ngrams[place : place + 512]))
        none = len(classifier.concepts) - 1
        found += [(float(p), -1 if c == none else int(c)) for p, c in zip(probability, concept, strict=True)]
    return found


def _recall_at_precision(found: Sequence[tuple[float, int]], truth: np.ndarray) -> float:
    """The largest share of true cases found at any threshold with a precision of .9 or more."""
    scores = np.array([score for score, _ in found])
    concepts = np.array([concept for _, concept in found])
    best = 0.0
    for threshold in np.unique(scores[concepts >= 0]):
        accepted = (scores >= threshold) & (concepts >= 0)
        right = accepted & (concepts == truth)
        if right.sum() >= PRECISION * accepted.sum():
            best = max(best, right.sum() / (truth >= 0).sum())
    return float(best)
