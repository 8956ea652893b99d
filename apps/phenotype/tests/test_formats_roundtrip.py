"""Any Unicode text survives each format with ``text[start:end] == mention.text``, up to what a format cannot carry."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tempfile
import warnings
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from weightsmith_phenotype import CorpusError, Document, Mention, Passage
from weightsmith_phenotype.formats import FORMATS, CorpusNotice, read_documents, write_csv, write_documents
from weightsmith_phenotype.formats._jsonl import _KINDS

CORPORA = Path(os.environ.get("PHENOTAGGER_CORPORA", "no such folder"))
PIECES = st.sampled_from(
    ["seizures", " ", "\n", "\r\n", "\r", "\t", "😀", "TNF-α", "e\u0301", "\u2028", "\x85", "\x0b", "\0", "\x1f",
     "|", '"', "7|t|x", "<b>&amp;", "=1+1", "\ufeff", "\ufffe", "\U0010ffff", "\u200d", "\\n", "T1\tX 0 1\tx", "{"]
)  # fmt: skip
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=6)), max_size=12).map("".join)
IDS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_. é😀-]{0,8}[A-Za-z0-9]", fullmatch=True)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Z", "Cs", "Cn"]), min_size=1, max_size=8)


@st.composite
def documents(draw, plain=False):
    text = draw(TEXTS)
    mentions = []
    for _ in range(draw(st.integers(0, 4)) if text else 0):
        start = draw(st.integers(0, len(text) - 1))
        end = draw(st.integers(start + 1, min(len(text), start + 12)))
        details = {"score": draw(st.sampled_from([1.0, 0.9712])), "kind": draw(WORDS), "source": "gold"}
        if not plain:
            details |= {flag: draw(st.booleans()) for flag in ("negated", "family", "uncertain")}
            details |= {"source": draw(WORDS), "name": draw(WORDS), "score": draw(st.floats(0, 1))}
        mentions.append(Mention(start, end, text[start:end], draw(WORDS), **details))
    passages = []
    if not plain:
        ends = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
        passages = [Passage(draw(WORDS), *pair) for pair in zip(ends[::2], ends[1::2], strict=False)]
    return Document(draw(IDS), text, tuple(mentions), tuple(passages))


def roundtrip(document, format, **options):
    out = io.BytesIO()
    write_documents([document], out, format, **options)
    out.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CorpusNotice)  # what we wrote needs no notice when it is read
        (back,) = read_documents(out, format)
    return back


@given(documents(), st.sampled_from(["codepoints", "utf16", "bytes"]))
def test_json_keeps_everything_in_every_unit(document, unit):
    assert roundtrip(document, "json", offset_unit=unit) == document


def test_json_has_every_field_of_a_mention():
    assert list(_KINDS) == [item.name for item in fields(Mention)]


@given(documents())
def test_bioc_keeps_everything_but_characters_that_xml_has_not(document):
    back = roundtrip(document, "bioc")
    carried = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\ufffd", document.text)
    assert back.text == carried
    assert [(p.kind, p.start, p.end) for p in back.passages] == [(p.kind, p.start, p.end) for p in document.passages]
    assert len(back.mentions) == len(document.mentions)
    for mention in back.mentions:
        assert mention.text == carried[mention.start : mention.end]
    expected = [(m.start, m.end, m.concept_id, m.kind, m.score, m.negated, m.source, m.name) for m in document.mentions]
    found = [(m.start, m.end, m.concept_id, m.kind, m.score, m.negated, m.source, m.name) for m in back.mentions]
    assert sorted(found) == sorted(expected)


@given(documents(plain=True))
def test_tsv_keeps_all_but_line_breaks(document):
    back = roundtrip(document, "tsv")
    assert back.text == re.sub(r"[\r\n]", " ", document.text)
    assert [(m.start, m.end, m.concept_id, m.score) for m in back.mentions] == [
        (m.start, m.end, m.concept_id, m.score) for m in document.mentions
    ]


@given(documents(plain=True))
def test_pubtator_keeps_all_but_line_breaks_after_the_first(document):
    title, found, abstract = document.text.partition("\n")
    if found and not abstract and any(mention.end == len(document.text) for mention in document.mentions):
        with pytest.raises(CorpusError, match="ends with the line break"):
            roundtrip(document, "pubtator")
        return
    back = roundtrip(document, "pubtator")
    expected = re.sub(r"[\r\n]", " ", title) + ("\n" + re.sub(r"[\r\n]", " ", abstract) if abstract else "")
    assert back.text == expected
    assert [(m.start, m.end, m.concept_id, m.score, m.kind) for m in back.mentions] == [
        (m.start, m.end, m.concept_id, m.score, m.kind) for m in document.mentions
    ]


@settings(max_examples=60)
@given(documents())
def test_brat_keeps_everything_or_refuses_the_mention(document):
    bare = Document(document.id, document.text, document.mentions)
    edge = re.compile(r"^\s*[\t\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]|[\t\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]\s*\Z")
    with tempfile.TemporaryDirectory() as folder:
        if any(edge.search(mention.text) for mention in bare.mentions):
            with pytest.raises(CorpusError, match="cannot stand in brat"):
                write_documents([bare], f"{folder}/out", "brat")
            return
        write_documents([bare], f"{folder}/out", "brat")
        for line in Path(f"{folder}/out/{document.id}.ann").read_text("utf-8").split("\n"):
            assert line.count("\t") <= 2
            assert len(line.splitlines()) <= 1
        (back,) = read_documents(f"{folder}/out", "brat")
    assert back == bare


@given(TEXTS.filter(lambda text: "\0" not in text))
def test_plain_text_is_read_as_it_is_stored(text):
    (bare,) = read_documents(io.BytesIO(text.encode()), "text")
    (marked,) = read_documents(io.BytesIO(b"\xef\xbb\xbf" + text.encode()), "text")
    assert bare.text == text.removeprefix("\ufeff")
    assert marked.text == text


@given(documents())
def test_csv_rows_are_the_mentions_and_no_cell_is_a_formula(document):
    out = io.StringIO(newline="")
    write_csv([document], out)
    rows = list(csv.DictReader(io.StringIO(out.getvalue(), newline="")))
    assert len(rows) == len(document.mentions)
    for row, mention in zip(rows, document.mentions, strict=True):
        for column in ("document_id", "text", "concept_id", "name", "source", "kind"):
            cell = row[column]
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
            plain = cell[1:] if cell.startswith("'") else cell
            value = document.id if column == "document_id" else getattr(mention, column)
            assert plain == value.replace("\0", "\ufffd")
        assert (int(row["start"]), int(row["end"])) == (mention.start, mention.end)


@pytest.mark.parametrize("name", [name for name, item in FORMATS.items() if item.writable and name != "phenopacket"])
def test_many_documents_keep_their_order_and_number(name, tmp_path):
    many = [
        Document(f"n{number:03}", f"Note {number}: tall 😀", (Mention(0, 4, "Note", "X:1"),)) for number in range(50)
    ]
    write_documents(many, tmp_path / "out", name)
    if name == "csv":
        assert (tmp_path / "out").read_bytes().count(b"\r\n") == 51
    else:
        back = list(read_documents(tmp_path / "out", name))
        assert [(d.id, d.mentions[0].text) for d in back] == [(d.id, "Note") for d in many]


@pytest.mark.skipif(not CORPORA.exists(), reason="the corpora are not here")
def test_pubtator_file_is_written_back_as_it_was():
    raw = (CORPORA / "ex.PubTator").read_bytes()
    documents = list(read_documents(io.BytesIO(raw), "pubtator"))
    out = io.BytesIO()
    write_documents(documents, out, "pubtator")
    assert out.getvalue().rstrip(b"\n") == raw.replace(b"\r\n", b"\n").rstrip(b"\n")


@pytest.mark.skipif(not CORPORA.exists(), reason="the corpora are not here")
@pytest.mark.parametrize(
    ("file", "count", "mentions"),
    [("GSC/GSCplus_dev_gold", 22, 173), ("GSC/GSCplus_test_gold", 206, 1949), ("NCBI_disease/NCBI_dev_gold", 100, 787)],
)
def test_gold_corpora_are_read_and_written_back(file, count, mentions):
    with zipfile.ZipFile(CORPORA / "corpus.zip") as corpora:
        raw = corpora.read(f"corpus/{file}.tsv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        documents = list(read_documents(io.BytesIO(raw), "tsv"))
    assert (len(documents), sum(len(document.mentions) for document in documents)) == (count, mentions)
    out = io.BytesIO()
    write_documents(documents, out, "tsv")
    assert out.getvalue() == raw.replace(b"\r\n", b"\n")


@pytest.mark.skipif(not CORPORA.exists(), reason="the corpora are not here")
def test_bioc_example_with_a_doctype_is_read():
    documents = list(read_documents(CORPORA / "ex.BioC.XML"))
    assert [document.id for document in documents][:2] == ["20921890", "15684285"]
    title, abstract = documents[0].passages
    assert (title.kind, abstract.kind, abstract.start) == ("title", "abstract", 114)
    assert documents[0].text[114:].startswith("BACKGROUND: BL-1020")
    assert json.dumps(documents[0].text[113]) == '"\\n"'
