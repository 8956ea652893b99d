"""The metrics by hand-counted examples."""

from __future__ import annotations

import pytest

from weightsmith_phenotype import CorpusError, Document, Mention, evaluate
from weightsmith_phenotype.metrics import described_ids

TEXT = "x" * 60


def document(identifier, *places):
    return Document(identifier, TEXT, [Mention(a, b, TEXT[a:b], concept) for a, b, concept in places])


GOLD = [document("1", (0, 10, "A"), (22, 30, "B"), (50, 55, "D")), document("2")]
FOUND = [document("1", (0, 10, "A"), (20, 30, "B"), (40, 45, "C")), document("2")]


def test_the_worked_example_of_the_specification():
    result = evaluate(GOLD, FOUND)
    for score, expected in (
        (result.document_micro, 2 / 3),
        (result.document_macro, 0.83333),
        (result.mention_strict, 1 / 3),
        (result.mention_relaxed, 2 / 3),
    ):
        assert (score.precision, score.recall, score.f1) == pytest.approx((expected,) * 3, abs=1e-5)
    assert (result.documents, result.annotated, result.predicted) == (2, 3, 3)


def test_spans_that_touch_do_not_overlap():
    result = evaluate([document("1", (0, 5, "A"))], [document("1", (5, 9, "A"))])
    assert result.mention_relaxed.f1 == 0


def test_nothing_found_and_nothing_there():
    gold = [document("1"), document("2", (0, 5, "A"))]
    assert evaluate(gold, gold).mention_strict_macro.f1 == 1
    assert evaluate([document("1", (0, 5, "A"))], [document("1")]).mention_strict.f1 == 0
    found = [document("1", (0, 5, "A")), document("2", (0, 5, "A"))]
    assert evaluate(gold, found).document_macro.precision == 0.5


def test_a_mention_annotated_twice_counts_once():
    result = evaluate([document("1", (0, 5, "A"), (0, 5, "A"))], [document("1", (0, 5, "A"))])
    assert result.annotated == 1


def test_old_ids_become_live_ones_and_other_branches_are_left_out(small_tagger):
    gold = [document("1", (0, 5, "HP:0007050"), (6, 9, "HP:0000005"))]
    found = [document("1", (0, 5, "HP:0001251"), (30, 40, "HP:0000001"))]
    result = evaluate(gold, found, small_tagger.ontology)
    assert result.mention_strict.f1 == 1
    assert result.left_out == 2


def test_other_documents_are_refused():
    with pytest.raises(CorpusError, match="1 annotated and 2 predicted"):
        evaluate([document("1")], [document("1"), document("2")])
    with pytest.raises(CorpusError, match="the same ids"):
        evaluate([document("1")], [document("2")])
    with pytest.raises(CorpusError):
        evaluate([], [])


def test_intervals_hold_the_score_and_need_no_documents_that_agree():
    gold = [document(str(n), (0, 5, "A")) for n in range(30)]
    found = [document(str(n), (0, 5, "A" if n % 3 else "B")) for n in range(30)]
    score = evaluate(gold, found).mention_strict
    assert score.f1 == pytest.approx(2 / 3)
    assert score.low < score.f1 < score.high
    assert score.low > 0.4
    assert score.high < 0.9
    assert evaluate(gold, found).mention_strict == score  # the same seed, the same interval


def test_the_order_of_documents_does_not_matter():
    one = evaluate(GOLD, FOUND, resamples=0).to_dict()
    assert {
        k: v for k, v in evaluate(GOLD[::-1], FOUND[::-1], resamples=0).to_dict().items() if k != "x"
    }.keys() == one.keys()
    assert evaluate(GOLD[::-1], FOUND[::-1], resamples=0).document_macro.f1 == one["document_macro"]["f1"]


def test_without_an_annotated_concept_there_is_nothing_to_compare(small_tagger):
    with pytest.raises(CorpusError, match="nothing to compare with: found 2 documents and no annotated mention"):
        evaluate([document("1"), document("2")], [document("1", (0, 5, "A")), document("2")])
    gold = [document("1", (0, 5, "HP:0008888"), (6, 9, "HP:0008888"), (10, 12, "OMIM:1"), (20, 22, ""))]
    with pytest.raises(CorpusError) as refused:
        evaluate(gold, gold, small_tagger.ontology)
    assert (
        "found 1 documents, and 4 annotated mentions of no concept of the ontology: "
        "HP:0008888 (2 mentions; obsolete, consider HP:0000204, HP:0000202); OMIM:1 (1 mention); no id (1 mention)"
    ) in str(refused.value)


def test_ids_that_are_left_out_are_counted_by_id(small_tagger):
    gold = [document("1", (0, 5, "HP:0001250"), (6, 9, "HP:0008888"), (10, 12, "X:1"))]
    result = evaluate(gold, [document("1", (6, 9, "HP:0008888"))], small_tagger.ontology)
    assert result.left_out == 3
    assert result.left_out_ids == {"HP:0008888": 2, "X:1": 1}
    many = {f"X:{number}": 1 for number in range(12)}
    assert len(described_ids(many)) == 11
    assert described_ids(many)[-1] == "and 2 more ids"
