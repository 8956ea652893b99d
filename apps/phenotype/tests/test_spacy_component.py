"""The tagger in a spaCy pipeline."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from weightsmith_phenotype import Mention, TaggerError

spacy = pytest.importorskip("spacy")
from spacy.tokens import Doc, DocBin, Span  # noqa: E402

from weightsmith_phenotype.spacy_component import PhenotypeComponent  # noqa: E402


class FixedTagger:
    """Finds given strings, each with a concept; stands for a tagger that a caller built."""

    def __init__(self, **concepts):
        self.concepts = concepts

    def tag(self, text):
        if "fail" in text:
            raise ValueError("cannot be tagged")
        return sorted(
            Mention(
                text.index(name), text.index(name) + len(name), name, concept, name.title(), 0.97, "classifier", True
            )
            for name, concept in self.concepts.items()
            if name in text
        )

    def tag_many(self, texts):
        for text in texts:
            yield self.tag(text)


def pipeline(tagger, **settings):
    nlp = spacy.blank("en")
    nlp.add_pipe("phenotype_tagger", config=settings)._given = tagger
    return nlp


def spans(doc, key="hpo"):
    return [(span.text, span.kb_id_) for span in doc.spans[key]]


def test_spans_with_ids_labels_and_attributes(small_tagger):
    doc = pipeline(small_tagger)("He has short-stature/obesity and a cleft palate.")
    assert spans(doc) == [("short-stature", "HP:0004322"), ("obesity", "HP:0001513"), ("cleft palate", "HP:0000175")]
    span = doc.spans["hpo"][2]
    assert span.label_ == "PHENOTYPE"
    assert (span._.concept_name, span._.score, span._.mention_source) == ("Cleft palate", 1.0, "dictionary")
    assert (span._.negated, span._.family, span._.uncertain) == (False, False, False)
    assert doc.text[span._.mention_start : span._.mention_end] == "cleft palate"


def test_offsets_inside_tokens_are_kept_and_the_span_takes_the_token():
    doc = pipeline(FixedTagger(stature="X:1", isplas="X:2"))("shortstature and dysplasia or hyperisplasia")
    assert spans(doc) == [("shortstature", "X:1"), ("hyperisplasia", "X:2")]
    first = doc.spans["hpo"][0]
    assert (first._.mention_start, first._.mention_end, first._.negated) == (5, 12, True)


def test_two_concepts_over_one_token_keep_their_own_scores():
    class Two(FixedTagger):
        def tag(self, text):
            return [Mention(0, 3, text[:3], "X:1", "a", 0.96), Mention(0, 4, text[:4], "X:2", "b", 0.99)]

    doc = pipeline(Two())("ataxia")
    assert [(span.kb_id_, span._.score, span._.mention_end) for span in doc.spans["hpo"]] == [
        ("X:1", 0.96, 3),
        ("X:2", 0.99, 4),
    ]


def test_a_mention_outside_the_text_is_refused_not_dropped():
    class Outside(FixedTagger):
        def tag(self, text):
            return [Mention(50, 56, "ataxia", "X:1")]

    with pytest.raises(TaggerError, match=r"'ataxia' of X:1: found \[50, 56\]"):
        pipeline(Outside())("short")


def test_spans_key_empty_text_and_a_second_run(small_tagger):
    nlp = pipeline(small_tagger, spans_key="findings")
    assert list(nlp("").spans["findings"]) == []
    doc = nlp("Ataxia.")
    assert spans(nlp.get_pipe("phenotype_tagger")(doc), "findings") == [("Ataxia", "HP:0001251")]


def test_the_default_tagger_is_loaded_at_the_first_document(hpo_tagger, monkeypatch):
    loaded = []
    monkeypatch.setattr("weightsmith_phenotype.tagger.default_tagger", lambda: loaded.append(1) or hpo_tagger)
    nlp = spacy.blank("en")
    nlp.add_pipe("phenotype_tagger")
    assert loaded == []
    assert spans(nlp("Arachnodactyly")) == [("Arachnodactyly", "HP:0001166")]
    nlp("Ataxia")
    assert loaded == [1]


def test_pickle_keeps_a_given_tagger(small_tagger):
    component = PhenotypeComponent(small_tagger, spans_key="found")
    copy = pickle.loads(pickle.dumps(component))
    doc = copy(spacy.blank("en")("Ataxia and obesity"))
    assert spans(doc, "found") == [("Ataxia", "HP:0001251"), ("obesity", "HP:0001513")]


def test_pickle_does_not_carry_a_tagger_that_can_be_loaded_again(hpo_tagger):
    component = PhenotypeComponent()
    component._tagger = hpo_tagger
    assert len(pickle.dumps(component)) < 2000


def test_bytes_and_docbin_keep_the_attributes(small_tagger):
    nlp = pipeline(small_tagger)
    doc = nlp("Severe short stature.")
    for again in (
        Doc(nlp.vocab).from_bytes(doc.to_bytes()),
        next(iter(DocBin(docs=[doc], store_user_data=True).get_docs(nlp.vocab))),
    ):
        assert [(s.kb_id_, s._.score, s._.concept_name) for s in again.spans["hpo"]] == [
            (s.kb_id_, s._.score, s._.concept_name) for s in doc.spans["hpo"]
        ]
        assert "HP:0003510" in [s.kb_id_ for s in again.spans["hpo"]]


def test_pipe_equals_calls_in_one_and_in_two_processes(small_tagger):
    nlp = pipeline(small_tagger)
    texts = ["Ataxia.", "", "Obesity and a cleft palate", "nothing"] * 3
    alone = [spans(doc) for doc in map(nlp, texts)]
    assert [spans(doc) for doc in nlp.pipe(texts, batch_size=5)] == alone
    two = list(nlp.pipe(texts, n_process=2, batch_size=5))
    assert [spans(doc) for doc in two] == alone
    assert [span._.score for span in two[2].spans["hpo"]] == [1.0, 1.0]


def test_a_failing_document_goes_alone_to_the_error_handler():
    nlp = pipeline(FixedTagger(ataxia="X:1"))
    with pytest.raises(ValueError, match="cannot be tagged"):
        list(nlp.pipe(["ataxia", "fail", "ataxia"]))
    failed = []
    nlp.set_error_handler(lambda name, component, docs, error: failed.extend((name, doc.text) for doc in docs))
    assert [doc.text for doc in nlp.pipe(["ataxia one", "fail", "ataxia two"])] == ["ataxia one", "ataxia two"]
    assert failed == [("phenotype_tagger", "fail")]


def test_disk_round_trip_of_the_default_tagger(tmp_path, hpo_tagger, monkeypatch):
    monkeypatch.setattr("weightsmith_phenotype.tagger.default_tagger", lambda: hpo_tagger)
    nlp = spacy.blank("en")
    nlp.add_pipe("phenotype_tagger", config={"spans_key": "findings"})
    nlp.to_disk(tmp_path / "pipeline")
    again = spacy.load(tmp_path / "pipeline")
    assert spans(again("Arachnodactyly"), "findings") == [("Arachnodactyly", "HP:0001166")]
    assert sorted(path.name for path in (tmp_path / "pipeline" / "phenotype_tagger").iterdir()) == [
        "phenotype_tagger.json"
    ]


def test_disk_round_trip_of_a_given_tagger_and_over_what_is_there(tmp_path, monkeypatch):
    class Saved(FixedTagger):
        def save_pretrained(self, folder):
            folder.mkdir()
            (folder / "concepts.json").write_text(json.dumps(self.concepts))

    def load(folder):
        return Saved(**json.loads((Path(folder) / "concepts.json").read_text()))

    monkeypatch.setattr("weightsmith_phenotype.tagger.PhenoTagger.from_pretrained", load)
    folder = tmp_path / "pipeline"
    pipeline(Saved(ptosis="X:1")).to_disk(folder)
    pipeline(Saved(ataxia="X:2")).to_disk(folder)
    again = spacy.load(folder)
    assert spans(again("ptosis and ataxia")) == [("ataxia", "X:2")]
    again.to_disk(folder)  # over the files that it reads from
    assert spans(spacy.load(folder)("ataxia")) == [("ataxia", "X:2")]
    again.to_disk(tmp_path / "other")
    assert spans(spacy.load(tmp_path / "other")("ataxia")) == [("ataxia", "X:2")]
    assert sorted(path.name for path in (tmp_path / "other" / "phenotype_tagger").iterdir()) == [
        "phenotype_tagger.json",
        "tagger",
    ]


def test_disk_round_trip_of_a_real_tagger(tmp_path, small_tagger):
    nlp = pipeline(small_tagger)
    nlp.to_disk(tmp_path / "pipeline")
    again = spacy.load(tmp_path / "pipeline")
    text = "He has short-stature/obesity, no seizures, and his mother had migraine."
    first, second = nlp(text), again(text)
    assert spans(second) == spans(first)
    assert [(s.text, s._.negated, s._.family) for s in second.spans["hpo"]] == [
        ("short-stature", False, False),
        ("obesity", False, False),
        ("seizures", True, False),
        ("migraine", False, True),
    ]


def test_a_folder_in_the_settings_is_loaded_at_the_first_document(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "weightsmith_phenotype.tagger.PhenoTagger.from_pretrained",
        lambda folder: asked.append(folder) or FixedTagger(ataxia="X:2"),
    )
    nlp = spacy.blank("en")
    nlp.add_pipe("phenotype_tagger", config={"tagger": "some/folder"})
    assert asked == []
    assert spans(nlp("ataxia")) == [("ataxia", "X:2")]
    assert asked == ["some/folder"]


def test_damaged_settings_are_refused(tmp_path):
    (tmp_path / "phenotype_tagger.json").write_text("{}")
    with pytest.raises(TaggerError, match=r"phenotype_tagger\.json"):
        PhenotypeComponent().from_disk(tmp_path)
    with pytest.raises(TaggerError, match="settings that to_disk wrote"):
        PhenotypeComponent().from_disk(tmp_path / "none")


def test_extensions_are_registered_once_and_foreign_ones_are_refused():
    PhenotypeComponent()
    PhenotypeComponent()
    Span.set_extension("other_negated", default=False)
    try:
        with pytest.raises(TaggerError, match=r"span\._\.other_negated.*prefix"):
            PhenotypeComponent(prefix="other_")
    finally:
        Span.remove_extension("other_negated")
    nlp = pipeline(FixedTagger(ataxia="X:1"), prefix="hpo_")
    doc = nlp("ataxia")
    assert doc.spans["hpo"][0]._.hpo_negated is True
