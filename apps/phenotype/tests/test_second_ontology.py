"""Another ontology: diseases of MONDO in the NCBI disease corpus. Skipped where either is absent."""

from __future__ import annotations

import json
import os
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

from weightsmith_phenotype import Ontology, PhenoTagger, Synonym, Term
from weightsmith_phenotype.formats import read_documents

guide = pytest.importorskip("cellxgene_ontology_guide", reason="MONDO comes with the package cellxgene-ontology-guide")
zstandard = pytest.importorskip("zstandard", reason="MONDO is compressed with zstandard")
CORPUS = Path(os.environ.get("WEIGHTSMITH_DATA", "")) / "apps" / "phenotagger" / "corpus.zip"


@pytest.fixture(scope="module")
def mondo():
    path = max((files(guide) / "data").glob("MONDO-ontology-v*.json.zst"))
    with path.open("rb") as file:
        read = json.load(zstandard.ZstdDecompressor().stream_reader(file))
    terms = [
        Term(
            identifier,
            term["label"],
            "",
            [Synonym(name) for name in term.get("synonyms", ())],
            [above for above, steps in term["ancestors"].items() if steps == 1 and above in read],
        )
        for identifier, term in read.items()
        if identifier.startswith("MONDO:") and not term["deprecated"]
    ]
    return PhenoTagger(Ontology(terms, root="MONDO:0000001"))


@pytest.mark.skipif(not CORPUS.is_file(), reason="the NCBI disease corpus is the user's data (WEIGHTSMITH_DATA)")
def test_diseases_are_found_where_they_are_annotated(mondo, tmp_path):
    tagger = mondo.with_settings(nested=False, context=False)
    with zipfile.ZipFile(CORPUS) as archive:
        documents = list(read_documents(Path(archive.extract("corpus/NCBI_disease/NCBI_test_gold.tsv", tmp_path))))
    right = reported = found = annotated = 0
    for document in documents:
        mentions = tagger.tag(document.text)
        right += sum(any(m.start < g.end and g.start < m.end for g in document.mentions) for m in mentions)
        found += sum(any(m.start < g.end and g.start < m.end for m in mentions) for g in document.mentions)
        reported, annotated = reported + len(mentions), annotated + len(document.mentions)
    assert len(documents) == 100
    assert right / reported > 0.93
    assert found / annotated > 0.72
