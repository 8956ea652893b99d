"""The classifier of n-grams: candidates, negatives, training on a small ontology, and numbers that must not be NaN."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith_phenotype import PhenoTagger, Settings, TaggerError, matcher
from weightsmith_phenotype.classifier import (
    SIZE,
    Classifier,
    negative_ngrams,
    train_classifier,
    word_features,
)
from weightsmith_phenotype.kernels.embed import candidates
from weightsmith_phenotype.kernels.match import BARRIER, COMMA, ENDS, FUNCTION, JOINT, KNOWN, LINK

TEXT = [
    "The patient was seen by a doctor in the morning and left the building late in the evening without a coat.",
    "Blood samples were taken twice from each family member before breakfast and sent to two different laboratories.",
]


@pytest.fixture(scope="module")
def trained(small_tagger):
    return train_classifier(small_tagger.ontology, negative_text=TEXT, negatives=40, epochs=60, batch_size=32)


def windows(flags, lengths=(2, 8), taken=()):
    """The windows that the kernel makes of words with these flags, one feature each."""
    n = len(flags)
    ids, flags = np.arange(n, dtype=np.int32), np.array(flags, np.int32)
    features = np.random.default_rng(0).random((n, 4), np.float32), np.ones(n, np.float32)
    used = np.zeros(n, np.bool_)
    used[list(taken)] = True
    gate = np.array([0, 0, 0, 0, 1], np.float32)
    spans, vectors = np.empty((200, 2), np.int32), np.empty((200, 4), np.float32)
    count = candidates(ids, flags, features, used, gate, lengths, spans, vectors, np.empty(4, np.float32))
    return [tuple(map(int, span)) for span in spans[:count]], vectors[:count], features[0]


WORD = KNOWN | ENDS


def test_candidate_counts_of_the_specification():
    assert len(windows([WORD] * 10)[0]) == 42
    assert len(windows([WORD] * 3)[0]) == 3
    assert len(windows([WORD] * 3, lengths=(1, 8))[0]) == 6
    separate = windows([WORD] * 3 + [BARRIER] + [WORD] * 10)[0]
    assert len(separate) == 45  # the reference would make 20 of the sentences in this order
    assert len(windows([WORD] * 10 + [BARRIER] + [WORD] * 3)[0]) == 45


@pytest.mark.parametrize("sign", [BARRIER, COMMA, FUNCTION])
def test_candidates_cross_no_sign_and_no_function_word(sign):
    assert windows([WORD, sign, WORD])[0] == []


def test_candidates_begin_and_end_with_words_that_can():
    assert windows([LINK | WORD, WORD, WORD])[0] == [(1, 3)]
    assert windows([WORD, WORD, KNOWN])[0] == [(0, 2)]
    assert windows([WORD, JOINT, WORD])[0] == [(0, 3)]
    assert windows([ENDS, ENDS, ENDS])[0] == []  # none of them occurs in the ontology
    assert windows([WORD] * 4, taken=[1])[0] == [(2, 4)]


def test_a_vector_is_the_centered_mean_of_length_one():
    spans, vectors, features = windows([WORD] * 4)
    for (start, end), vector in zip(spans, vectors, strict=True):
        mean = features[start:end].mean(0)
        expected = (mean - mean.mean()) / np.linalg.norm(mean - mean.mean())
        assert vector == pytest.approx(expected, abs=1e-5)


def test_negatives_are_no_names_and_have_no_function_words_at_their_ends():
    names = frozenset({("short", "stature")})
    text = ["the boy has short stature and was seen with a broken window"]
    found = negative_ngrams(text, 5, names=names)
    assert len(set(found)) == 5
    for ngram in found:
        assert ngram != ("short", "stature")
        assert ngram[0] not in {"the", "has", "and", "was", "with", "a"}
    assert found == negative_ngrams(text, 5, names=names)
    with pytest.raises(TaggerError, match="Give more text"):
        negative_ngrams(text, 10_000, names=names)


def test_it_learns_its_names_and_leaves_other_text(trained, small_tagger):
    concepts = small_tagger.ontology.concepts
    probability, best = trained.best(trained.vectors([["short", "stature"], ["cleft", "palate"], ["late", "evening"]]))
    assert [concepts[n] for n in best[:2]] == ["HP:0004322", "HP:0000175"]
    assert best[2] == len(concepts)
    assert (probability > 0.5).all()


def test_it_finds_wordings_that_the_dictionary_has_not(trained, small_tagger):
    tagger = PhenoTagger(
        small_tagger.ontology, small_tagger.dictionary, trained, Settings(classifier=0.5, variants=2, context=False)
    )
    sources = {m.concept_id: m.source for m in tagger.tag("The palate clefts were repaired.")}
    assert sources.get("HP:0000175") == "classifier"


def test_a_threshold_of_one_is_the_dictionary_and_no_names_the_classifier(trained, small_tagger):
    text = "Short stature, cleft of the palate, epileptic seizure and ataxic movements."
    tagger = PhenoTagger(small_tagger.ontology, small_tagger.dictionary, trained)
    assert tagger.with_settings(classifier=1.0).tag(text) == small_tagger.tag(text)
    alone = tagger.with_settings(names=False, classifier=0.3).tag(text)
    assert {m.source for m in alone} == {"classifier"}


def test_the_matcher_and_the_classifier_make_the_same_vectors(trained, small_tagger):
    made = PhenoTagger(small_tagger.ontology, small_tagger.dictionary, trained)._matcher
    made.find("short stature", variants=None, classifier=0.0)
    sums, counts = made.words.features
    rows = [made.words.numbers["short"], made.words.numbers["stature"]]
    mean = sums[rows].sum(0) / counts[rows].sum()
    centered = (mean - mean.mean()) / np.linalg.norm(mean - mean.mean())
    assert trained.vectors([["short", "stature"]])[0] == pytest.approx(centered, abs=1e-5)


def test_the_shortlist_changes_no_answer(trained, small_tagger, monkeypatch):
    text = (
        "Clefts of the palate, small of stature, seizures of epileptic kind; the eyelid upper drooping, a focal onset."
    )
    tagger = PhenoTagger(small_tagger.ontology, small_tagger.dictionary, trained, Settings(names=False, context=False))
    taggers = [tagger.with_settings(classifier=least) for least in (0.1, 0.5, 0.9)]
    short = [one.tag(text) for one in taggers]
    monkeypatch.setattr(matcher, "shortlist", lambda *given: given[-1].fill(True))
    assert [one.tag(text) for one in taggers] == short
    assert len(short[0]) > 1


def test_the_same_seed_trains_the_same_classifier(small_tagger):
    one, two = (
        train_classifier(small_tagger.ontology, negative_text=TEXT, negatives=20, epochs=2, batch_size=16)
        for _ in range(2)
    )
    assert (one.table == two.table).all()
    assert (one.concepts == two.concepts).all()


def test_features_are_a_word_and_its_pieces():
    assert len(word_features("ab")) == 1 + 3 + 2 + 1  # =ab; <a ab b>; <ab ab>; <ab>
    assert (word_features("ab") == word_features("ab")).all()


def test_numbers_that_are_not_finite_are_refused():
    nan = np.full((3, SIZE), np.nan, np.float32)
    index = np.zeros(0, np.uint64), np.zeros(1, np.int32), np.zeros(0, np.int32)
    broken = Classifier(np.ones((4, SIZE), np.float32), nan, np.zeros(SIZE + 1), *index)
    with pytest.raises(TaggerError, match="NaN or infinite"):
        broken.best(np.ones((1, SIZE), np.float32))
