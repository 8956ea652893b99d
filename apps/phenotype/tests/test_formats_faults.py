"""One bad line or document: the others of its file are read, and each bad one is named."""

from __future__ import annotations

import io

import pytest

from weightsmith_phenotype import CorpusError
from weightsmith_phenotype.batch import tag_corpus
from weightsmith_phenotype.corpus import Failure, find_inputs, read_inputs
from weightsmith_phenotype.formats import read_documents


def read(raw, format):
    """Ids and texts of what is read, and the errors of what is not."""
    errors = []
    documents = list(read_documents(io.BytesIO(raw), format, failed=errors.append))
    return [(document.id, document.text) for document in documents], [str(error) for error in errors]


JSON = b'{"id": "1", "text": "one"}\n%s\n{"id": "3", "text": "three"}\n'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"id": "2", "te', "stream, line 2 is not JSON"),
        (b'{"id": "2", "text": "caf\xe9"}', "stream is not UTF-8: found byte 0xE9 at byte 24 of line 2"),
        (b'{"id": "2"}', "stream, line 2: found ['id']"),
        (b'{"id": "2", "text": "x", "mentions": [{"start": 0}]}', "document '2': mention 0: end"),
        (b'{"id": "1", "text": "again"}', "two documents have the id '1'"),
    ],
)
def test_a_bad_line_of_json_does_not_lose_the_others(line, says):
    found, errors = read(JSON % line, "json")
    assert found == [("1", "one"), ("3", "three")]
    assert len(errors) == 1
    assert says in errors[0]
    with pytest.raises(CorpusError):
        list(read_documents(io.BytesIO(JSON % line), "json"))


@pytest.mark.parametrize("line", [b'{"id": "2", "te', b"\xff\xfd", b"comment", b'{"id": "2"}'])
def test_a_bad_first_line_of_json_does_not_lose_the_others(line):
    found, errors = read(line + b"\n" + JSON % b"{}", "json")
    assert found == [("1", "one"), ("3", "three")]
    assert len(errors) == 2
    assert "line 1" in errors[0]
    assert "line 3" in errors[1]


def test_ids_of_lines_without_one_count_the_bad_lines():
    assert read(b'{"text": "one"}\n{\n{"text": "three"}\n', "json")[0] == [("stream-1", "one"), ("stream-3", "three")]


def test_one_object_over_several_lines_fails_once():
    with pytest.raises(CorpusError, match="is not JSON"):
        read(b'{\n  "id": "1",\n  "text": "one",\n}\n', "json")
    assert read(b'{\n  "id": "1",\n  "text": "one"\n}\n', "json") == ([("1", "one")], [])


PUBTATOR = "1|t|one\n1|a|\n\n%s\n\n3|t|three\n3|a|\n\n"


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("2|t|two\nnonsense\n2|a|more", "line 5, in document '2'"),
        ("2|t|two\n2|t|two", "line 5: document '2' has two lines |t|"),
        ("nonsense\n2|a|more", "line 4: found 'nonsense'"),
        ("2|t|two\n2|a|\n2\t0\t9\ttwo\tPhenotype\tX:1", "mention [0, 9] of X:1"),
        ("2|t|two\n2|a|\n2\t1\t-1\ttwo\tPhenotype\tX:1", "line 6: an annotation of document '2'"),
    ],
)
def test_a_bad_block_of_pubtator_does_not_lose_the_others(block, says):
    found, errors = read((PUBTATOR % block).encode(), "pubtator")
    assert found == [("1", "one"), ("3", "three")]
    assert len(errors) == 1
    assert says in errors[0]


def test_pubtator_without_blank_lines_goes_on_with_the_next_title():
    found, errors = read(b"1|t|one\nbad\n1|a|x\n2|t|caf\xe9\n2|a|x\n3|t|three\n4|a|four\n", "pubtator")
    assert found == [("3", "three"), ("4", "\nfour")]
    assert [error.partition(":")[0] for error in errors] == ["stream, line 2, in document '1'", "stream is not UTF-8"]


TSV = "1\none\n\n%s\n\n3\nthree\n\n"


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("2\ntwo\n0\tx\n1\t2\tw\tX:1", "line 6, in document '2'"),
        ("0\t3\ttwo\tX:1", "line 4: found"),
        ("2", "ends at line 4: found the id '2' without a text"),
        ("2\ntwo\n0\t9\ttwo\tX:1", "mention [0, 9] of X:1"),
    ],
)
def test_a_bad_block_of_tsv_does_not_lose_the_others(block, says):
    found, errors = read((TSV % block).encode(), "tsv")
    assert found == [("1", "one"), ("3", "three")]
    assert len(errors) == 1
    assert says in errors[0]
    assert read((TSV % "2\n").encode(), "tsv") == ([("1", "one"), ("2", ""), ("3", "three")], [])


def test_a_bad_document_of_well_formed_xml_does_not_lose_the_others():
    passage = "<passage><offset>%s</offset><text>one</text></passage>"
    parts = "".join(f"<document><id>{n}</id>{passage % at}</document>" for n, at in ((1, 0), (2, "x"), (3, 0)))
    found, errors = read(f"<collection>{parts}</collection>".encode(), "bioc")
    assert [identifier for identifier, _ in found] == ["1", "3"]
    assert len(errors) == 1
    assert "document '2': offset of passage 1: found 'x'" in errors[0]


def test_what_cannot_be_read_further_says_so(tmp_path):
    path = tmp_path / "cut.xml"
    document = "<document><id>1</id><passage><offset>0</offset><text>one</text></passage></document>"
    path.write_text(f"<collection>{document}<document><id>2")
    found = list(read_inputs(find_inputs([path])))
    assert found[0][1].id == "1"
    assert isinstance(found[1], Failure)
    assert found[1].error.endswith("The file was not read further; 1 documents before this were")


def test_a_run_names_each_bad_line_and_tags_the_others(small_tagger, tmp_path):
    lines = ["{", '{"id": "a", "text": "ptosis"}', "[]", '{"id": "b", "text": "ataxia"}', '{"id": "a", "text": "x"}']
    (tmp_path / "notes.jsonl").write_text("\n".join(lines))
    result = tag_corpus([tmp_path / "notes.jsonl"], small_tagger, tmp_path / "out.jsonl", batch_size=2)
    assert (result.documents, result.mentions, len(result.failures)) == (2, 2, 3)
    assert ["line 1" in str(result.failures[0]), "line 3" in str(result.failures[1])] == [True, True]
    again = tag_corpus([tmp_path / "notes.jsonl"], small_tagger, tmp_path / "out.jsonl", resume=True)
    assert again.failures == result.failures
