"""A tagger with contexts, annotations of genes and diseases for the small ontology, and a server on a free port."""

from __future__ import annotations

import re
import shutil

import pytest

from weightsmith.core.web import serving
from weightsmith_phenotype import Mention, Ontology, PhenoTagger
from weightsmith_phenotype.serve import Insight, create_app

HPOA = """#description: "written for a test"
#version: 2030-01-02
database_id\tdisease_name\tqualifier\thpo_id\treference\tevidence\tonset\tfrequency\tsex\tmodifier\taspect\tbiocuration
OMIM:100001\tPalate and seizure syndrome\t\tHP:0000175\tPMID:1\tPCS\t\t\t\t\tP\tx
OMIM:100001\tPalate and seizure syndrome\t\tHP:0007359\tPMID:1\tPCS\t\t\t\t\tP\tx
OMIM:100002\tAtaxia syndrome\t\tHP:0001251\tPMID:1\tPCS\t\t\t\t\tP\tx
OMIM:100002\tAtaxia syndrome\tNOT\tHP:0001250\tPMID:1\tPCS\t\t\t\t\tP\tx
OMIM:100003\tGrowth syndrome\t\tHP:0004322\tPMID:1\tPCS\t\t\t\t\tP\tx
OMIM:100003\tGrowth syndrome\t\tHP:0001513\tPMID:1\tPCS\t\t\t\t\tP\tx
OMIM:100003\tGrowth syndrome\t\tHP:0000508\tPMID:1\tPCS\t\t\t\t\tP\tx
ORPHA:1\tNeeded by pyhpo\t\tHP:0001251\tPMID:1\tPCS\t\t\t\t\tP\tx
DECIPHER:1\tNeeded by pyhpo\t\tHP:0001251\tPMID:1\tPCS\t\t\t\t\tP\tx
"""
GENES = (
    "ncbi_gene_id\tgene_symbol\thpo_id\thpo_name\tfrequency\tdisease_id\n"
    "11\tPALA\tHP:0000175\tx\t-\tOMIM:100001\n"
    "11\tPALA\tHP:0007359\tx\t-\tOMIM:100001\n"
    "12\tATAX\tHP:0001251\tx\t-\tOMIM:100002\n"
    "13\tGROW\tHP:0004322\tx\t-\tOMIM:100003\n"
    "13\tGROW\tHP:0001513\tx\t-\tOMIM:100003\n"
)


class FlaggingTagger(PhenoTagger):
    """Finds all names, nested ones too, and sets the context by the word before: these tests do not depend on rules."""

    def __init__(self, ontology):
        self.ontology = ontology
        self.names = {name.lower(): concept for concept in ontology.concepts for name in ontology[concept].names}

    def tag(self, text):
        flags = {"no": "negated", "possible": "uncertain", "father's": "family"}
        found = []
        lower = text.lower()
        for name, concept in self.names.items():
            if re.split("[ -]", name)[0] not in lower:
                continue
            for match in re.finditer(rf"\b{re.escape(name)}s?\b".replace(r"\ ", "[ -]"), text, re.IGNORECASE):
                flag = flags.get((text[: match.start()].split() or [""])[-1].lower())
                context = {flag: True} if flag else {}
                found.append(Mention(*match.span(), match[0], concept, self.ontology[concept].name, **context))
        return sorted(found)


@pytest.fixture(scope="session")
def flagging_tagger(small_obo):
    return FlaggingTagger(Ontology.from_obo(small_obo))


@pytest.fixture(scope="session")
def hpo_names():
    return FlaggingTagger(Ontology.default())


@pytest.fixture(scope="session")
def annotations(small_obo, tmp_path_factory):
    """The files that pyhpo reads, for the small ontology."""
    folder = tmp_path_factory.mktemp("annotations")
    shutil.copy(small_obo, folder / "hp.obo")
    (folder / "phenotype.hpoa").write_text(HPOA, encoding="utf-8")
    (folder / "genes_to_phenotype.txt").write_text(GENES, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def insight(annotations):
    made = Insight(annotations)
    assert made.wait(60) == "ready"
    return made


@pytest.fixture
def app(flagging_tagger, insight):
    return create_app(flagging_tagger, insight=insight)


@pytest.fixture(scope="session")
def serve():
    """The context manager that serves an application."""
    return serving
