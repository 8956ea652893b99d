"""Damaged files of any kind are read or refused by our own error, never by one from inside."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress

import pytest
from hypothesis import given, settings, strategies as st

from weightsmith_phenotype import CorpusError, Document, Mention, Passage
from weightsmith_phenotype.formats import read_documents, read_phenopacket, write_documents

DOCUMENT = Document(
    "d1",
    "Ptosis 😀\r\nand ataxia.\tα",
    (Mention(0, 6, "Ptosis", "HP:1", "Ptosis", 0.75, negated=True), Mention(14, 20, "ataxia", "HP:2", source="gold")),
    (Passage("title", 0, 8),),
)
PACKET = '{"id": "p", "phenotypicFeatures": [{"type": {"id": "HP:1", "label": "x"}, "excluded": true}], "metaData": {}}'
PIECES = st.sampled_from(
    [b"\n", b"\t", b"|", b"|t|", b"|a|", b"\xff", b"\0", b"\xef\xbb\xbf", b"<", b">", b"</text>", b"&x;", b"<offset>",
     b'"', b"{", b"[", b"]", b"}", b":", b"null", b"-1", b"99999999999999999999", b"1e999", b"NaN", b"\\ud800", b";",
     b"T1", b"\r", b"<annotation>", b"<location/>", b"<!DOCTYPE a [", b"<sentence>", b"true", b"d1", b" "]
)  # fmt: skip


def original(format):
    out = io.BytesIO()
    write_documents([DOCUMENT, Document("d2", "x")], out, format, include_negated=True)
    return out.getvalue()


@st.composite
def damaged(draw, raw):
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.sampled_from([0, 0, 1, 3, 20])))
        new = draw(st.one_of(PIECES, st.binary(max_size=4)))
        raw = raw[:start] + new + raw[end:]
    return raw


def read(raw, format, **options):
    with warnings.catch_warnings(), suppress(CorpusError):
        warnings.simplefilter("ignore")
        for document in read_documents(io.BytesIO(raw), format, **options):
            for mention in document.mentions:
                assert document.text[mention.start : mention.end] == mention.text


@pytest.mark.parametrize("format", ["json", "pubtator", "tsv", "bioc"])
def test_damaged_files(format):
    @settings(max_examples=250, deadline=None)
    @given(damaged(original(format)), st.sampled_from([None, "utf16", "bytes"]))
    def check(raw, unit):
        read(raw, format, offset_unit=unit)
        read(raw, format, mentions=False)

    check()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_brat_files(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("brat")
    write_documents([DOCUMENT], folder / "out", "brat")
    for name in ("d1.ann", "d1.txt"):
        path = folder / "out" / name
        path.write_bytes(data.draw(damaged(path.read_bytes())) if data.draw(st.booleans()) else path.read_bytes())
    with warnings.catch_warnings(), suppress(CorpusError):
        warnings.simplefilter("ignore")
        list(read_documents(folder / "out", offset_unit=data.draw(st.sampled_from([None, "utf16", "bytes"]))))


@settings(max_examples=200, deadline=None)
@given(damaged(PACKET.encode()))
def test_damaged_phenopackets(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("packet") / "p.json"
    path.write_bytes(raw)
    with suppress(CorpusError):
        read_phenopacket(path)
