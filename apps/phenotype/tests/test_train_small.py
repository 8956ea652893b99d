"""Training on ontologies whose definitions have fewer n-grams than are asked for."""

from __future__ import annotations

import pytest

from weightsmith_phenotype import Ontology, PhenoTagger, TaggerError, Term
from weightsmith_phenotype.classifier import negative_ngrams, train_classifier

NAMES = ("Large ear", "Small ear", "Cleft lip")


def ontology(definition):
    terms = [Term(f"X:{n}", name, definition, parents=["X:0"]) for n, name in enumerate(NAMES, 1)]
    return Ontology([Term("X:0", "finding"), *terms], root="X:0")


@pytest.mark.parametrize(
    "definition", ["", "The same words in all of the definitions, which therefore have few n-grams."]
)
def test_an_ontology_with_few_definitions_trains(definition):
    tagger = PhenoTagger.from_ontology(ontology(definition), epochs=20)
    assert len(tagger.classifier.concepts) == len(NAMES) + 1
    _, best = tagger.classifier.best(tagger.classifier.vectors([name.lower().split() for name in NAMES]))
    assert best.tolist() == [0, 1, 2]
    assert [m.concept_id for m in tagger.tag("A cleft lip and large ears.")] == ["X:3", "X:1"]


def test_text_of_the_user_must_have_as_many_as_asked_for():
    with pytest.raises(TaggerError, match="expected at least 50. Give more text."):
        train_classifier(ontology(""), negative_text=["Few words here."], negatives=50)
    assert len(negative_ngrams(["Few words here."], 50, names=frozenset(), at_most=True)) < 50
