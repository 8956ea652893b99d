"""Reading ontologies: the whole graph, old ids, and files that are not as they should be."""

from __future__ import annotations

import json

import pytest

from weightsmith_phenotype import Ontology, OntologyError, PhenoTagger, Term
from weightsmith_phenotype.ontology import OntologyNotice, hpo_folder

HEADER = "format-version: 1.2\ndata-version: v1\nontology: x\n\n"


def obo(tmp_path, body):
    path = tmp_path / "x.obo"
    path.write_text(HEADER + body, encoding="utf-8")
    return path


def stanza(identifier, name, *lines):
    return "\n".join(["[Term]", f"id: {identifier}", f"name: {name}", *lines, "", ""])


def test_a_term_with_two_parents_is_below_both(small_tagger):
    above = small_tagger.ontology.ancestors("HP:0000175")
    assert {"HP:0000202", "HP:0000174", "HP:0000152", "HP:0000118"} <= above


def test_all_paths_to_the_root_count_where_the_reference_keeps_the_last_is_a(tmp_path):
    # The reference reads the last is_a only: X:3 would hang below X:9, outside the root.
    body = stanza("X:1", "root") + stanza("X:2", "inside", "is_a: X:1") + stanza("X:9", "outside")
    body += stanza("X:3", "both", "is_a: X:2", "is_a: X:9")
    assert Ontology.from_obo(obo(tmp_path, body), root="X:1").concepts == ["X:2", "X:3"]


def test_hpo_has_every_term_with_a_path_to_the_root():
    ontology = Ontology.default()
    reached = {i for i in ontology.terms if "HP:0000118" in ontology.ancestors(i) and not ontology[i].obsolete}
    assert reached == set(ontology.concepts)
    assert "HP:0000005" not in ontology  # mode of inheritance
    last_only = {i: ontology[i].parents[-1:] for i in ontology.terms}

    def below(identifier):
        while last_only[identifier]:
            (identifier,) = last_only[identifier]
            if identifier == "HP:0000118":
                return True
        return False

    forest = {i for i in ontology.concepts if below(i)}
    assert forest <= set(ontology.concepts)
    assert len(ontology.concepts) - len(forest) == 2  # what the reference would lose in this release


def test_merged_and_replaced_ids_become_the_live_id(small_tagger):
    ontology = small_tagger.ontology
    assert ontology.resolve("HP:0007050") == "HP:0001251"  # alt_id
    assert ontology.resolve("HP:0009999") == "HP:0004322"  # replaced_by
    assert ontology.resolve("HP_0004322") == "HP:0004322"
    assert ontology.resolve("HP:0000005") is None  # outside the root's branch
    assert ontology.resolve("HP:0000118") is None  # the root is no concept
    assert ontology.resolve("HP:1234567") is None


def test_consider_is_never_taken_silently(small_tagger):
    assert small_tagger.ontology.resolve("HP:0008888") is None
    assert small_tagger.ontology.suggestions("HP:0008888") == ["HP:0000204", "HP:0000202"]


def test_replaced_by_with_an_underscore_is_read(tmp_path):
    body = stanza("HP:0000118", "root") + stanza("HP:0030408", "kept", "is_a: HP:0000118")
    body += stanza("HP:0000002", "obsolete thing", "is_obsolete: true", "replaced_by: HP_0030408")
    assert Ontology.from_obo(obo(tmp_path, body)).resolve("HP:0000002") == "HP:0030408"


def test_a_chain_of_replacements_is_followed_and_a_circle_is_not(tmp_path):
    body = stanza("X:1", "root") + stanza("X:2", "kept", "is_a: X:1")
    body += stanza("X:3", "old", "is_obsolete: true", "replaced_by: X:4")
    body += stanza("X:4", "newer", "is_obsolete: true", "replaced_by: X:2")
    body += stanza("X:5", "circle", "is_obsolete: true", "replaced_by: X:6")
    body += stanza("X:6", "circle too", "is_obsolete: true", "replaced_by: X:5")
    ontology = Ontology.from_obo(obo(tmp_path, body), root="X:1")
    assert ontology.resolve("X:3") == "X:2"
    assert ontology.resolve("X:5") is None


def test_an_ontology_without_the_root_is_refused(tmp_path):
    with pytest.raises(OntologyError, match=r"root 'X:7' not in ontology \(1 terms read\)"):
        Ontology.from_obo(obo(tmp_path, stanza("X:1", "root")), root="X:7")


def test_a_root_without_terms_below_is_refused(tmp_path):
    with pytest.raises(OntologyError, match="no terms below it"):
        Ontology.from_obo(obo(tmp_path, stanza("X:1", "root")), root="X:1")


def test_a_cycle_is_named(tmp_path):
    body = stanza("X:1", "root") + stanza("X:2", "a", "is_a: X:3") + stanza("X:3", "b", "is_a: X:2", "is_a: X:1")
    with pytest.raises(OntologyError, match="cycle: X:2 -> X:3 -> X:2"):
        Ontology.from_obo(obo(tmp_path, body), root="X:1")


@pytest.mark.parametrize("content", ["", "not an ontology", "[Typedef]\nid: part_of\n", "\x00\x01"])
def test_a_file_without_terms_is_refused_by_name(tmp_path, content):
    path = tmp_path / "x.obo"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(OntologyError, match="no \\[Term\\]"):
        Ontology.from_obo(path)


def test_quotes_comments_and_modifiers_are_read(tmp_path):
    body = stanza("X:1", "root")
    body += stanza(
        "X:2",
        "one",
        r'def: "He said \"no\"." [ref:1]',
        'synonym: "other" BROAD layperson [ref:2]',
        'is_a: X:1 {source="y"} ! root',
    )
    term = Ontology.from_obo(obo(tmp_path, body), root="X:1")["X:2"]
    assert term.definition == 'He said "no".'
    assert (term.synonyms[0].text, term.synonyms[0].scope, term.synonyms[0].kind) == ("other", "BROAD", "layperson")
    assert term.parents == ["X:1"]


def test_saving_and_loading_is_the_identity(tmp_path, small_tagger):
    ontology = small_tagger.ontology
    ontology.save(tmp_path / "o.jsonl")
    again = Ontology.load(tmp_path / "o.jsonl", root=ontology.root, name=ontology.name, version=ontology.version)
    assert again.terms == ontology.terms
    assert again.fingerprint == ontology.fingerprint
    assert all(json.loads(line)["id"] for line in (tmp_path / "o.jsonl").read_text("utf-8").splitlines())


def test_a_fingerprint_follows_names_not_the_order_of_lines():
    terms = [Term("X:1", "root"), Term("X:2", "a", parents=["X:1"])]
    changed = [Term("X:1", "root"), Term("X:2", "b", parents=["X:1"])]
    assert Ontology(terms, root="X:1").fingerprint != Ontology(changed, root="X:1").fingerprint
    assert Ontology(terms, root="X:1").fingerprint == Ontology(terms[::-1], root="X:1").fingerprint


def test_hpo_is_found_without_importing_its_package():
    assert (hpo_folder() / "hp.obo").is_file()


def test_a_parent_that_is_not_in_the_file_is_named_and_counted(tmp_path):
    body = stanza("X:1", "root") + stanza("X:2", "a", "is_a: X:1", "is_a: X:8") + stanza("X:3", "b", "is_a: X:9")
    with pytest.warns(OntologyNotice, match=r"x.obo: 2 is_a of .*: X:2 \(is_a X:8\), X:3 \(is_a X:9\)"):
        assert Ontology.from_obo(obo(tmp_path, body), root="X:1").concepts == ["X:2"]


def test_of_a_repeated_id_the_first_term_counts_and_it_is_said(tmp_path):
    body = stanza("X:1", "root") + stanza("X:2", "first", "is_a: X:1") + stanza("X:2", "second", "is_a: X:9")
    with pytest.warns(OntologyNotice, match="1 ids that are there twice; the first term counts: X:2"):
        assert Ontology.from_obo(obo(tmp_path, body), root="X:1")["X:2"].name == "first"


def test_a_term_without_a_name_has_its_id_for_a_name(tmp_path):
    body = stanza("X:1", "root") + "[Term]\nid: X:2\nis_a: X:1\n\n" + stanza("X:3", "tall", "is_a: X:1")
    with pytest.warns(OntologyNotice, match="1 terms without a name; their id is taken for it: X:2"):
        ontology = Ontology.from_obo(obo(tmp_path, body), root="X:1")
    assert ontology["X:2"].names == ["X:2"]
    assert [mention.concept_id for mention in PhenoTagger(ontology).tag("He is tall.")] == ["X:3"]


def test_hpo_gives_no_notice(recwarn):
    Ontology.default()
    assert [str(item.message) for item in recwarn if issubclass(item.category, OntologyNotice)] == []


def test_what_is_no_obo_file_is_named_with_what_to_do(tmp_path):
    (tmp_path / "x.obo").write_bytes(b"format-version: 1.2\nname: caf\xe9")
    for path, says in (
        (tmp_path / "x.obo", "x.obo is not text in UTF-8: found byte 0xE9 at byte 29, expected an ontology in OBO"),
        (tmp_path / "gone.obo", "gone.obo: found No such file or directory, expected a file in OBO format. Check"),
        (tmp_path, ": found Is a directory"),
    ):
        with pytest.raises(OntologyError) as refused:
            Ontology.from_obo(path)
        assert says in str(refused.value)


def test_candidates_for_a_root_are_terms_without_parents_that_have_children(tmp_path):
    body = stanza("X:7", "single") + stanza("X:1", "root") + stanza("X:2", "a", "is_a: X:1")
    with pytest.raises(OntologyError, match=r"Set --root .*candidates: X:1 \(root\), X:7 \(single\)"):
        Ontology.from_obo(obo(tmp_path, body))


def test_a_name_of_two_terms_is_said(tmp_path):
    body = stanza("X:1", "root") + stanza("X:2", "cyst", "is_a: X:1") + stanza("X:3", "cyst", "is_a: X:2")
    with pytest.warns(OntologyNotice, match=r"2 terms whose name another one has.*cyst \(X:2\), cyst \(X:3\)"):
        ontology = Ontology.from_obo(obo(tmp_path, body), root="X:1")
    assert [m.concept_id for m in PhenoTagger(ontology).tag("a cyst")] == ["X:2"]
