"""The spec's tuples on parses made by hand, so that no model is needed, and the parser where it is installed."""

import pytest

spacy = pytest.importorskip("spacy")

from spacy.tokens import Doc  # noqa: E402

from weightsmith.core.errors import MissingDependencyError  # noqa: E402
from weightsmith_kitchen import language as module  # noqa: E402
from weightsmith_kitchen.steps.events import events_of_doc, parse_steps, split_steps  # noqa: E402

VOCAB = spacy.blank("en").vocab


def tuples(*rows):
    """Tuples of a parse given as (word, head, dependency, part of speech)."""
    words, heads, deps, pos = zip(*rows, strict=True)
    doc = Doc(VOCAB, words=list(words), heads=list(heads), deps=list(deps), pos=list(pos))
    return [event.as_tuple() for event in events_of_doc(doc)]


def test_combine_and_mix():
    assert tuples(
        ("combine", 0, "ROOT", "VERB"),
        ("the", 3, "det", "DET"),
        ("cooked", 3, "amod", "ADJ"),
        ("pasta", 0, "dobj", "NOUN"),
        ("and", 3, "cc", "CCONJ"),
        ("the", 6, "det", "DET"),
        ("sauce", 3, "conj", "NOUN"),
        ("in", 6, "prep", "ADP"),
        ("a", 10, "det", "DET"),
        ("medium", 10, "amod", "ADJ"),
        ("bowl", 7, "pobj", "NOUN"),
        ("and", 0, "cc", "CCONJ"),
        ("mix", 0, "conj", "VERB"),
        ("carefully", 12, "advmod", "ADV"),
    ) == [("combine", "cooked pasta"), ("combine", "sauce"), ("mix", "carefully")]


def test_noun_above_is_the_subject():
    assert tuples(
        ("bake", 0, "ROOT", "NOUN"),
        (",", 0, "punct", "PUNCT"),
        ("uncovered", 0, "acl", "VERB"),
        (",", 2, "punct", "PUNCT"),
        ("for", 2, "prep", "ADP"),
        ("20", 6, "nummod", "NUM"),
        ("minutes", 4, "pobj", "NOUN"),
    ) == [("bake", "uncovered", "20 minutes")]


def test_clause_beside_the_object():
    assert tuples(
        ("add", 0, "ROOT", "VERB"),
        ("the", 2, "det", "DET"),
        ("milk", 0, "dobj", "NOUN"),
        (",", 0, "punct", "PUNCT"),
        ("whisking", 0, "advcl", "VERB"),
        ("constantly", 4, "advmod", "ADV"),
    ) == [("add", "milk"), ("whisking", "constantly")]


def test_negated_verb_and_object():
    rows = [
        ("do", 2, "aux", "AUX"),
        ("not", 2, "neg", "PART"),
        ("peel", 2, "ROOT", "VERB"),
        ("them", 2, "dobj", "PRON"),
    ]
    assert tuples(*rows) == [("!peel", "them")]
    rows = [("add", 0, "ROOT", "VERB"), ("no", 2, "det", "DET"), ("salt", 0, "dobj", "NOUN")]
    assert tuples(*rows) == [("!add", "salt")]


def test_list_of_three_is_three_events():
    assert tuples(
        ("fry", 0, "ROOT", "VERB"),
        ("onion", 0, "dobj", "NOUN"),
        (",", 1, "punct", "PUNCT"),
        ("garlic", 1, "conj", "NOUN"),
        ("and", 3, "cc", "CCONJ"),
        ("olive", 6, "compound", "NOUN"),
        ("oil", 3, "conj", "NOUN"),
    ) == [("fry", "onion"), ("fry", "garlic"), ("fry", "olive oil")]


def test_prepositional_objects_are_added():
    assert tuples(
        ("put", 0, "ROOT", "VERB"),
        ("rice", 0, "dobj", "NOUN"),
        ("in", 0, "prep", "ADP"),
        ("a", 4, "det", "DET"),
        ("pot", 2, "pobj", "NOUN"),
    ) == [("put", "rice"), ("put", "pot")]


def test_second_verb_stands_for_the_first():
    assert tuples(
        ("continue", 0, "ROOT", "VERB"),
        ("to", 2, "aux", "PART"),
        ("stir", 0, "xcomp", "VERB"),
        ("sauce", 2, "dobj", "NOUN"),
    ) == [("stir", "sauce")]


def test_objects_of_a_verb_that_another_stands_for_are_joined_by_and():
    assert tuples(
        ("use", 0, "ROOT", "VERB"),
        ("butter", 0, "dobj", "NOUN"),
        ("and", 1, "cc", "CCONJ"),
        ("oil", 1, "conj", "NOUN"),
        ("to", 5, "aux", "PART"),
        ("coat", 0, "xcomp", "VERB"),
        ("pans", 5, "dobj", "NOUN"),
        ("and", 6, "cc", "CCONJ"),
        ("pots", 6, "conj", "NOUN"),
    ) == [("coat", "butter"), ("coat", "oil"), ("coat", "pans"), ("coat", "pots")]


def test_joined_subjects_and_subject_of_the_verb_above():
    assert tuples(
        ("oil", 3, "nsubj", "NOUN"),
        ("and", 0, "cc", "CCONJ"),
        ("butter", 0, "conj", "NOUN"),
        ("coat", 3, "ROOT", "VERB"),
        ("rice", 3, "dobj", "NOUN"),
    ) == [("oil", "coat", "rice"), ("butter", "coat", "rice")]
    assert tuples(
        ("you", 1, "nsubj", "PRON"),
        ("chop", 1, "ROOT", "VERB"),
        ("leeks", 1, "dobj", "NOUN"),
        ("and", 1, "cc", "CCONJ"),
        ("fry", 1, "conj", "VERB"),
        ("them", 4, "dobj", "PRON"),
    ) == [("you", "chop", "leeks"), ("you", "fry", "them")]


def test_verb_without_object_gives_nothing():
    assert tuples(("serve", 0, "ROOT", "VERB"), (".", 0, "punct", "PUNCT")) == []
    assert tuples(("hot", 0, "ROOT", "ADJ")) == []


def test_steps_are_cleaned():
    assert split_steps(["12. Boil | Drain it\nServe", "------", "  ", "Step 2: Rest", "2 eggs are beaten"]) == [
        "Boil",
        "Drain it",
        "Serve",
        "Rest",
        "2 eggs are beaten",
    ]


def test_missing_model_is_named(monkeypatch):
    module.load_parser.cache_clear()
    monkeypatch.setattr(module, "MODEL", "en_no_such_model")
    with pytest.raises(MissingDependencyError, match=r"pip install 'weightsmith-kitchen\[events\]'"):
        module.load_parser()
    module.load_parser.cache_clear()


def test_parser_gets_verbs_of_orders_right():
    try:
        module.load_parser()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    doc = next(parse_steps(["Place chicken in a baking dish."]))
    assert [event.as_tuple() for event in events_of_doc(doc)] == [("place", "chicken"), ("place", "baking dish")]
    assert doc.text.split()[0] == "you"
