"""Phenopackets: what the schema's library reads, one feature per concept, nothing that the text does not state."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from weightsmith_phenotype import CorpusError, Document, Mention, Ontology, Term
from weightsmith_phenotype.formats import Feature, read_documents, read_phenopacket, write_documents, write_phenopacket

WHEN = datetime(2025, 3, 1, 12, 30, 15, 987654, tzinfo=timezone(timedelta(hours=2)))


@pytest.fixture(scope="module")
def ontology():
    terms = [
        Term("HP:0000118", "Phenotypic abnormality"),
        Term("HP:0001250", "Seizure", parents=["HP:0000118"], alternative_ids=["HP:0002279"]),
        Term("HP:0000508", "Ptosis", parents=["HP:0000118"]),
        Term("HP:0009999", "Old", obsolete=True, consider=["HP:0000508"]),
    ]
    return Ontology(terms, root="HP:0000118", name="hp", version="hp/releases/2025-01-16")


def packet(ontology, *found):
    words = {"HP:0001250": "seizure", "HP:0002279": "seizure", "HP:0000508": "ptosis", "HP:0009999": "ptosis"}
    text, mentions = "", []
    for concept, flags in found:
        mentions.append(Mention(len(text), len(text) + len(words[concept]), words[concept], concept, **flags))
        text += words[concept] + " "
    return write_phenopacket(Document("p 1", text, tuple(mentions)), ontology, created=WHEN)


def test_the_schema_s_library_reads_it(ontology):
    phenopackets = pytest.importorskip("phenopackets", reason="the extra [dev] is not installed")
    from google.protobuf.json_format import MessageToDict, Parse

    made = packet(ontology, ("HP:0001250", {}), ("HP:0000508", {"negated": True}))
    parsed = Parse(json.dumps(made), phenopackets.Phenopacket())
    assert (parsed.id, parsed.subject.id) == ("p 1", "p 1")
    assert [(f.type.id, f.type.label, f.excluded) for f in parsed.phenotypic_features] == [
        ("HP:0001250", "Seizure", False),
        ("HP:0000508", "Ptosis", True),
    ]
    (resource,) = parsed.meta_data.resources
    assert (resource.id, resource.version, resource.namespace_prefix) == ("hp", "2025-01-16", "HP")
    assert parsed.meta_data.phenopacket_schema_version == "2.0"
    assert made["metaData"]["created"] == "2025-03-01T10:30:15Z"
    assert MessageToDict(parsed) == made
    empty = Parse(json.dumps(packet(ontology)), phenopackets.Phenopacket())
    assert len(empty.phenotypic_features) == 0


def test_one_feature_per_concept_and_merged_ids_become_the_live_one(ontology):
    made = packet(ontology, ("HP:0001250", {}), ("HP:0002279", {}), ("HP:0001250", {}))
    assert made["phenotypicFeatures"] == [{"type": {"id": "HP:0001250", "label": "Seizure"}}]


def test_relatives_and_uncertain_mentions_are_not_features(ontology):
    made = packet(ontology, ("HP:0001250", {"family": True}), ("HP:0000508", {"uncertain": True, "negated": True}))
    assert "phenotypicFeatures" not in made
    assert read_phenopacket(made).features == ()


def test_what_is_stated_and_denied_is_stated_and_says_so(ontology):
    for flags in (({}, {"negated": True}), ({"negated": True}, {})):
        made = packet(ontology, *(("HP:0001250", item) for item in flags))
        (feature,) = made["phenotypicFeatures"]
        assert "excluded" not in feature
        assert feature["description"] == "The text also denies it."


def test_concept_that_is_not_in_the_ontology_is_refused(ontology):
    with pytest.raises(CorpusError, match=r"'p 1': mention \[0, 6\]: found HP:0009999, expected a concept of hp"):
        packet(ontology, ("HP:0009999", {}))


def test_packet_without_features_is_valid_and_empty(tmp_path):
    (tmp_path / "p.json").write_text('{"id": "p", "subject": {"id": "p"}}')
    assert read_phenopacket(tmp_path / "p.json").features == ()


def test_features_are_read_from_either_spelling_and_either_version():
    found = {"id": "p", "phenotypicFeatures": [{"type": {"id": "X:1", "label": "a"}, "negated": True}]}
    other = {"id": "p", "phenotypic_features": [{"type": {"id": "X:1", "label": "a"}, "excluded": True}]}
    assert read_phenopacket(found) == read_phenopacket(other)
    assert read_phenopacket(found).features == (Feature("X:1", "a", True),)
    with pytest.raises(CorpusError, match=r"phenotypicFeatures\[0\]: found"):
        read_phenopacket({"id": "p", "phenotypicFeatures": [{"type": {}}]})
    with pytest.raises(CorpusError, match="is no phenopacket"):
        read_phenopacket({"name": "p"})


def test_files_per_document_or_lines(ontology, tmp_path):
    many = [Document("a/1", "seizure", (Mention(0, 7, "seizure", "HP:0001250"),)), Document("2", "none")]
    write_documents(many, tmp_path / "folder", "phenopacket", ontology=ontology, created=datetime.now(UTC))
    assert read_phenopacket(tmp_path / "folder" / "a" / "1.json").features == (Feature("HP:0001250", "Seizure"),)
    assert read_phenopacket(tmp_path / "folder" / "2.json").features == ()
    out = io.StringIO()
    write_documents(many, out, "phenopacket", ontology=ontology)
    assert [json.loads(line)["id"] for line in out.getvalue().splitlines()] == ["a/1", "2"]
    with pytest.raises(CorpusError, match="Pass ontology="):
        write_documents(many, io.StringIO(), "phenopacket")
    with pytest.raises(CorpusError, match="phenopacket holds no texts"):
        list(read_documents(io.StringIO("{}"), "phenopacket"))
