"""The tagger as a whole: order, batches, processes, files, other releases of the ontology, input that is not text."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings, strategies as st

from weightsmith_phenotype import Document, Ontology, PhenoTagger, Settings, TaggerError, Term
from weightsmith_phenotype.classifier import train_classifier

NOTES = [
    "He has short stature and no seizures.",
    "Cleft palate. Mother had migraine.",
    "",
    "Ptosis, obesity and Sjögren's; tall-stature 😀 ataxia",
    "short stature (SS). SS was noted; SS runs in the family.",
]


@pytest.fixture(scope="module")
def trained(small_tagger):
    text = ["The patient was seen by a doctor in the morning and left the building late in the evening."]
    classifier = train_classifier(small_tagger.ontology, negative_text=text, negatives=20, epochs=20, batch_size=32)
    return PhenoTagger(small_tagger.ontology, small_tagger.dictionary, classifier)


@settings(max_examples=20, deadline=None)
@given(st.permutations(NOTES * 2))
def test_neither_order_nor_company_of_documents_changes_what_is_found(trained, notes):
    alone = {note: PhenoTagger(trained.ontology, trained.dictionary, trained.classifier).tag(note) for note in NOTES}
    assert list(trained.tag_many(notes)) == [alone[note] for note in notes]


def test_the_cache_of_words_does_not_change_what_is_found(trained, monkeypatch):
    from weightsmith_phenotype import word_table

    monkeypatch.setattr(word_table, "MOST_WORDS", 8)
    small = PhenoTagger(trained.ontology, trained.dictionary, trained.classifier)
    draw = random.Random(0)
    for _ in range(50):
        note = " ".join(draw.choice(NOTES) for _ in range(4))
        assert small.tag(note) == trained.tag(note)


def test_a_pickled_tagger_finds_the_same(trained):
    again = pickle.loads(pickle.dumps(trained))
    assert [again.tag(note) for note in NOTES] == [trained.tag(note) for note in NOTES]


def test_saving_and_loading_finds_the_same(trained, tmp_path):
    trained.with_settings(variants=0.8).save_pretrained(tmp_path / "tagger")
    again = PhenoTagger.from_pretrained(tmp_path / "tagger")
    assert again.settings == Settings(variants=0.8)
    assert [again.tag(n) for n in NOTES] == [trained.with_settings(variants=0.8).tag(n) for n in NOTES]
    assert again.ontology.version == trained.ontology.version
    with pytest.raises(TaggerError, match="exists"):
        trained.save_pretrained(tmp_path / "tagger")


@pytest.mark.parametrize("name", ["config.json", "ontology.jsonl", "words.json", "tables.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_damaged_folder_is_refused_by_name(trained, tmp_path, name, damage):
    folder = tmp_path / "tagger"
    trained.save_pretrained(folder)
    path = folder / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    with pytest.raises(TaggerError, match="tagger"):
        PhenoTagger.from_pretrained(folder)


def test_another_format_is_refused(trained, tmp_path):
    trained.save_pretrained(tmp_path / "tagger")
    path = tmp_path / "tagger" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"format": 99}), "utf-8")
    with pytest.raises(TaggerError, match="found 99"):
        PhenoTagger.from_pretrained(tmp_path / "tagger")


def newer(ontology):
    """A release in which one id was merged into another, one removed, one added."""
    terms = []
    for term in ontology.terms.values():
        if term.id in ("HP:0000508", "HP:0007359"):
            continue
        more = ["HP:0007359"] if term.id == "HP:0001250" else []
        terms.append(
            Term(
                term.id,
                term.name,
                term.definition,
                term.synonyms,
                term.parents,
                term.alternative_ids + more,
                term.obsolete,
                term.replaced_by,
                term.consider,
            )
        )
    terms.append(Term("HP:7777777", "Brand new finding", parents=["HP:0000118"]))
    return Ontology(terms, root=ontology.root, name="hp", version="hp/releases/2031-01-01")


def test_another_release_of_the_ontology_is_refused_with_what_changed(trained, tmp_path):
    trained.save_pretrained(tmp_path / "tagger")
    with pytest.raises(TaggerError, match=r"1 concepts added \(HP:7777777\), 2 concepts removed") as caught:
        PhenoTagger.from_pretrained(tmp_path / "tagger", newer(trained.ontology))
    assert "allow_ontology_drift" in str(caught.value)


def test_allowed_drift_reports_live_ids_and_drops_those_that_are_gone(trained, tmp_path):
    trained.save_pretrained(tmp_path / "tagger")
    tagger = PhenoTagger.from_pretrained(tmp_path / "tagger", newer(trained.ontology), allow_ontology_drift=True)
    found = {m.text: m.concept_id for m in tagger.tag("Partial seizure, ptosis and short stature.")}
    assert found["Partial seizure"] == "HP:0001250"
    assert "ptosis" not in found
    assert found["short stature"] == "HP:0004322"
    changed = tagger.with_settings(context=False)
    assert {m.text: m.concept_id for m in changed.tag("Partial seizure, ptosis and short stature.")} == found
    tagger.save_pretrained(tmp_path / "followed")
    again = PhenoTagger.from_pretrained(tmp_path / "followed")
    assert {m.text: m.concept_id for m in again.tag("Partial seizure, ptosis and short stature.")} == found
    assert pickle.loads(pickle.dumps(tagger)).tag(NOTES[0]) == tagger.tag(NOTES[0])


def test_threads_may_share_a_tagger(trained):
    shared = trained.with_settings(classifier=0.5)
    notes = [" ".join(random.Random(n).choices(NOTES, k=30)) + f" word{n}" for n in range(200)]
    alone = [shared.tag(note) for note in notes]
    fresh = PhenoTagger(trained.ontology, trained.dictionary, trained.classifier, shared.settings)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fresh.tag, notes)) == alone


def test_the_default_tagger_works_without_a_place_to_keep_it(small_tagger, tmp_path, monkeypatch):
    monkeypatch.setattr(Ontology, "default", lambda: small_tagger.ontology)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "file" / name)
    (tmp_path / "file").write_text("no folder")
    assert PhenoTagger.default().tag(NOTES[0]) == small_tagger.tag(NOTES[0])
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    first = PhenoTagger.default()
    assert list((tmp_path / "weightsmith" / "phenotype").iterdir())
    assert PhenoTagger.default().fingerprint == first.fingerprint


def test_kept_tables_of_other_releases_go_when_nobody_uses_them(small_tagger, tmp_path, monkeypatch):
    monkeypatch.setattr(Ontology, "default", lambda: small_tagger.ontology)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    folder = tmp_path / "weightsmith" / "phenotype"
    names = {name: f"hpo-{number:016x}-{number:012x}" for number, name in enumerate(("old", "used", "empty"))}
    for name in (*names.values(), "my-tagger"):
        (folder / name).mkdir(parents=True)
        if name != names["empty"]:
            (folder / name / "config.json").write_text("{}")
        os.utime(folder / name, (0, 0))
    os.utime(folder / names["used"])
    PhenoTagger.default()
    left = {path.name for path in folder.iterdir()}
    assert left >= {names["used"], names["empty"], "my-tagger"}
    assert names["old"] not in left
    assert len(left) == 4


@pytest.mark.parametrize("text", [None, b"short stature", 7, ["short stature"]])
def test_what_is_not_text_is_a_type_error(small_tagger, text):
    with pytest.raises(TypeError, match="expected str"):
        small_tagger.tag(text)


def test_unknown_settings_are_refused(small_tagger):
    with pytest.raises(TaggerError, match="found treshold"):
        small_tagger.with_settings(treshold=0.5)


@pytest.mark.parametrize("value", [-3, 0, float("nan")])
def test_settings_out_of_range_are_refused(small_tagger, value):
    with pytest.raises(TaggerError, match="variants"):
        small_tagger.with_settings(variants=value)
    with pytest.raises(TaggerError, match="classifier"):
        Settings(classifier=value or 1.5)


@pytest.mark.parametrize("changes", [{"classifier": 0.5}, {"names": False}])
def test_classifier_that_is_not_there_is_not_asked_for(small_tagger, changes):
    with pytest.raises(TaggerError, match="classifier: found none"):
        small_tagger.with_settings(**changes)
    with pytest.raises(TaggerError, match="classifier: found none"):
        PhenoTagger(small_tagger.ontology, small_tagger.dictionary, settings=Settings(**changes))


def test_an_empty_text_has_no_mentions(small_tagger):
    assert small_tagger.tag("") == []
    assert small_tagger.tag(" \n\t ") == []


def test_a_text_of_a_megabyte_is_tagged(small_tagger):
    text = "He has short stature. Nothing else was found on that day. " * 20_000
    assert sum(m.concept_id == "HP:0004322" for m in small_tagger.with_settings(context=False).tag(text)) == 20_000


def test_abbreviations_context_and_scores_arrive(small_tagger):
    mentions = small_tagger.tag(NOTES[4])
    assert [(m.text, m.source, m.family) for m in mentions] == [
        ("short stature", "dictionary", False),
        ("SS", "abbreviation", False),
        ("SS", "abbreviation", False),
        ("SS", "abbreviation", True),
    ]
    assert not small_tagger.with_settings(context=False, abbreviations=False).tag(NOTES[0])[1].negated
    assert small_tagger.tag(NOTES[0])[1].negated


def test_evaluating_on_its_own_output_is_perfect(small_tagger):
    documents = [small_tagger.tag_document(Document(str(n), note)) for n, note in enumerate(NOTES)]
    assert small_tagger.evaluate(documents).mention_strict.f1 == 1


def test_tagging_needs_no_torch(trained, tmp_path):
    trained.save_pretrained(tmp_path / "tagger")
    code = (
        "import sys; from weightsmith_phenotype import PhenoTagger; "
        "PhenoTagger.from_pretrained(sys.argv[1]).tag('short stature'); print('torch' in sys.modules)"
    )
    line = [sys.executable, "-c", code, str(tmp_path / "tagger")]
    assert subprocess.run(line, capture_output=True, text=True).stdout.strip() == "False"


def test_a_fingerprint_follows_all_that_decides_what_is_found(trained, small_tagger):
    assert trained.fingerprint == pickle.loads(pickle.dumps(trained)).fingerprint
    others = [small_tagger, trained.with_settings(variants=0.5), PhenoTagger(newer(trained.ontology))]
    assert len({trained.fingerprint, *(tagger.fingerprint for tagger in others)}) == 4
