"""What several test files of this package need: a small ontology, written here, and the whole of HPO."""

from __future__ import annotations

import pytest

from weightsmith_phenotype import Ontology, PhenoTagger

SMALL = """format-version: 1.2
data-version: hp/releases/2030-01-02
ontology: hp

[Term]
id: HP:0000001
name: All

[Term]
id: HP:0000118
name: Phenotypic abnormality
is_a: HP:0000001 ! All

[Term]
id: HP:0000707
name: Abnormality of the nervous system
is_a: HP:0000118

[Term]
id: HP:0001250
name: Seizure
def: "An event of abnormal, excessive firing of neurons." [ORCID:0]
synonym: "Epileptic seizure" EXACT []
synonym: "Fits" EXACT layperson []
is_a: HP:0000707

[Term]
id: HP:0007359
name: Focal-onset seizure
synonym: "Partial seizure" EXACT []
is_a: HP:0001250

[Term]
id: HP:0002373
name: Febrile seizure
is_a: HP:0001250

[Term]
id: HP:0001251
name: Ataxia
def: "Lack of coordination of voluntary movements." []
alt_id: HP:0007050
is_a: HP:0000707

[Term]
id: HP:0002076
name: Migraine
is_a: HP:0000707

[Term]
id: HP:0000152
name: Abnormality of head or neck
is_a: HP:0000118

[Term]
id: HP:0000202
name: Orofacial cleft
is_a: HP:0000152

[Term]
id: HP:0000174
name: Abnormal palate morphology
is_a: HP:0000152

[Term]
id: HP:0000175
name: Cleft palate
def: "A gap in the roof of the mouth." []
synonym: "Palatoschisis" EXACT []
is_a: HP:0000202
is_a: HP:0000174

[Term]
id: HP:0410031
name: Submucous cleft palate
is_a: HP:0000175

[Term]
id: HP:0000204
name: Cleft upper lip
is_a: HP:0000202

[Term]
id: HP:0000508
name: Ptosis
synonym: "Drooping upper eyelid" EXACT layperson []
is_a: HP:0000152

[Term]
id: HP:0001507
name: Growth abnormality
is_a: HP:0000118

[Term]
id: HP:0004322
name: Short stature
synonym: "Small stature" EXACT []
is_a: HP:0001507

[Term]
id: HP:0003510
name: Severe short stature
is_a: HP:0004322

[Term]
id: HP:0000098
name: Tall stature
is_a: HP:0001507

[Term]
id: HP:0001513
name: Obesity
is_a: HP:0001507

[Term]
id: HP:0000005
name: Mode of inheritance
is_a: HP:0000001

[Term]
id: HP:0009999
name: obsolete Dwarfism
is_obsolete: true
replaced_by: HP:0004322

[Term]
id: HP:0008888
name: obsolete Facial cleft of some kind
is_obsolete: true
consider: HP:0000204
consider: HP:0000202
"""


@pytest.fixture(scope="session")
def small_obo(tmp_path_factory):
    path = tmp_path_factory.mktemp("ontology") / "hp.obo"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small_tagger(small_obo):
    return PhenoTagger(Ontology.from_obo(small_obo))


@pytest.fixture(scope="session")
def hpo_tagger():
    """Names and their variants of all of HPO; the classifier of the default tagger would take a minute to train."""
    return PhenoTagger(Ontology.default())
