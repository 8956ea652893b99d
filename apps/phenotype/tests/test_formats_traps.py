"""Where users of other tools got hurt: offsets, encodings and files that are not what they seem."""

from __future__ import annotations

import codecs
import io
import json
import subprocess
import sys
import tracemalloc
import warnings

import pytest

from weightsmith_phenotype import CorpusError, Document, Mention, Passage
from weightsmith_phenotype.formats import (
    FORMATS,
    CorpusNotice,
    format_of,
    read_documents,
    write_csv,
    write_documents,
)


def read(text, format, **options):
    raw = text if isinstance(text, bytes) else text.encode()
    return list(read_documents(io.BytesIO(raw), format, **options))


def written(document, format, **options):
    out = io.BytesIO()
    write_documents([document], out, format, **options)
    return out.getvalue().decode()


def bioc(*passages, head='<?xml version="1.0"?>', identifier="d1"):
    return f"{head}<collection><document><id>{identifier}</id>{''.join(passages)}</document></collection>"


def annotation(offset, length, text, infons='<infon key="identifier">HP:1</infon>'):
    place = f'<location offset="{offset}" length="{length}"/>'
    return f'<annotation id="0">{infons}{place}<text>{text}</text></annotation>'


# Offsets are of the document and count code points.


def test_bioc_annotations_of_the_second_passage_count_from_the_document():
    title = "<passage><infon key='type'>title</infon><offset>0</offset><text>Two sisters.</text></passage>"
    body = f"<passage><offset>13</offset><text>One has ptosis.</text>{annotation(21, 6, 'ptosis')}</passage>"
    (document,) = read(bioc(title, body), "bioc")
    assert document.text == "Two sisters.\nOne has ptosis."
    assert document.mentions == (Mention(21, 27, "ptosis", "HP:1", source="gold", kind=""),)
    assert document.passages == (Passage("title", 0, 12),)
    assert read(written(document, "bioc"), "bioc") == [document]


def test_bioc_offsets_of_the_passage_instead_of_the_document_are_refused_with_the_right_place():
    body = f"<passage><offset>13</offset><text>One has ptosis.</text>{annotation(8, 6, 'ptosis')}</passage>"
    title = "<passage><offset>0</offset><text>Two sisters.</text></passage>"
    with pytest.raises(CorpusError, match=r"'d1': mention \[8, 14\] of HP:1.*stands at \[21, 27\]"):
        read(bioc(title, body), "bioc")


def test_bioc_passages_whose_offset_was_forgotten_are_refused():
    passage = "<passage><offset>0</offset><text>Two sisters.</text></passage>"
    with pytest.raises(CorpusError, match="'d1': passage 2 overlaps.*found offset 0, expected >= 12"):
        read(bioc(passage, passage), "bioc")


def test_bioc_text_in_sentences_is_one_passage():
    sentences = "".join(
        f"<sentence><offset>{at}</offset><text>{text}</text></sentence>" for at, text in ((0, "One."), (5, "Two."))
    )
    (document,) = read(
        bioc(f"<passage><infon key='type'>abstract</infon><offset>0</offset>{sentences}</passage>"), "bioc"
    )
    assert document.text == "One.\nTwo."
    assert document.passages == (Passage("abstract", 0, 9),)


@pytest.mark.parametrize("before", ["“quoted” ", "α and β ", "😀😀 ", "e\u0301le\u0300ve "])
@pytest.mark.parametrize("format", ["json", "bioc", "pubtator", "tsv", "brat"])
def test_what_stands_before_a_mention_counts_as_code_points(before, format, tmp_path):
    start = len(before)
    document = Document("d", before + "ptosis", (Mention(start, start + 6, "ptosis", "HP:1", source="gold"),))
    write_documents([document], tmp_path / "out", format)
    (back,) = read_documents(tmp_path / "out", format)
    assert (back.mentions[0].start, back.mentions[0].text) == (start, "ptosis")


def test_other_units_only_on_request():
    line = (
        '{"id": "d", "text": "😀é ptosis", '
        '"mentions": [{"start": %d, "end": %d, "text": "ptosis", "concept_id": "X"}]%s}'
    )
    (document,) = read(line % (3, 9, ""), "json")
    assert document.mentions[0].text == "ptosis"
    (utf16,) = read(line % (4, 10, ', "offset_unit": "utf16"'), "json")
    (octets,) = read(line % (7, 13, ', "offset_unit": "bytes"'), "json")
    assert utf16 == octets == document
    assert read(line % (4, 10, ""), "json", offset_unit="utf16") == [document]
    with pytest.raises(CorpusError, match="count UTF-16 units: read the file with offset_unit='utf16'"):
        read(line % (4, 10, ""), "json")
    with pytest.raises(CorpusError, match="offset_unit: found 'utf16', expected 'bytes'"):
        read(line % (4, 10, ', "offset_unit": "utf16"'), "json", offset_unit="bytes")
    with pytest.raises(CorpusError, match="at the bounds of characters"):
        read(line % (1, 10, ', "offset_unit": "utf16"'), "json")
    tsv = "d\n😀é ptosis\n7\t13\tptosis\tX\n"
    assert read(tsv, "tsv", offset_unit="bytes")[0].mentions == document.mentions
    assert '"offset_unit": "bytes"' in written(document, "json", offset_unit="bytes")
    assert "offset_unit" not in written(document, "json")


def test_bioc_offsets_in_bytes_on_request():
    title = "<passage><offset>0</offset><text>Élève 😀.</text></passage>"
    body = f"<passage><offset>14</offset><text>ptosis</text>{annotation(14, 6, 'ptosis')}</passage>"
    (document,) = read(bioc(title, body), "bioc", offset_unit="bytes")
    assert document.text == "Élève 😀.\nptosis"
    assert document.mentions[0].start == 9


# PubTator.

PUBTATOR = (
    "1|t|Ptosis and more.\n1|a|Seizures | were seen.\n"
    "1\t0\t6\tPtosis\tDisease\tHP:0000508\n1\t17\t25\tSeizures\tDisease\tMESH:D012640\n\n"
    "2|t|No abstract.\n2|a|\n2\t0\t2\tNo\tWord\n\n"
)


def test_pubtator_abstract_starts_one_after_the_title_and_writing_back_is_identity():
    first, second = read(PUBTATOR, "pubtator")
    assert first.text == "Ptosis and more.\nSeizures | were seen."
    assert first.mentions[1] == Mention(17, 25, "Seizures", "MESH:D012640", source="gold", kind="Disease")
    assert first.passages == (Passage("title", 0, 16), Passage("abstract", 17, 38))
    assert second.passages == (Passage("title", 0, 12),)
    out = io.StringIO()
    write_documents([first, second], out, "pubtator")
    assert out.getvalue() == PUBTATOR


def test_pubtator_without_blank_lines_and_with_crlf_is_the_same():
    assert read(PUBTATOR.replace("\n\n", "\n").replace("\n", "\r\n"), "pubtator") == read(PUBTATOR, "pubtator")


def test_pubtator_annotation_of_another_document_is_refused():
    with pytest.raises(CorpusError, match="line 2, in document '1'.*expected an annotation of this document"):
        read("1|t|Ptosis.\n2\t0\t6\tPtosis\tDisease\tHP:1\n", "pubtator")


def test_pubtator_relations_and_further_columns_are_left_out_with_a_notice():
    text = "1|t|Ptosis.\n1\t0\t6\tPtosis\tDisease\tHP:1\tpto|sis\n1\tCID\tD1\tD2\n"
    with pytest.warns(CorpusNotice) as notices:
        (document,) = read(text, "pubtator")
    assert len(document.mentions) == 1
    assert sorted(str(item.message).partition(": ")[2] for item in notices) == [
        "column 7 is left out: 'pto|sis'",
        "document '1': 1 lines of relations are left out",
    ]


def test_pubtator_score_is_the_seventh_column():
    (document,) = read("1|t|Ptosis.\n1|a|\n1\t0\t6\tPtosis\tPhenotype\tHP:1\t0.97\n", "pubtator")
    assert document.mentions[0].score == 0.97


def test_formats_without_flags_leave_out_what_is_not_asserted_unless_asked():
    mentions = (Mention(0, 6, "ptosis", "HP:1", negated=True), Mention(7, 13, "ataxia", "HP:2"))
    document = Document("d", "ptosis ataxia", mentions)
    for format in ("pubtator", "tsv"):
        assert not FORMATS[format].carries_flags
        assert "HP:1" not in written(document, format)
        assert "HP:1" in written(document, format, include_negated=True)


@pytest.mark.parametrize("identifier", ["a|b", "a\tb", "a\nb"])
def test_pubtator_id_that_would_end_early_is_refused(identifier):
    with pytest.raises(CorpusError, match="its id cannot stand in PubTator"):
        written(Document(identifier, "x"), "pubtator")


# The document's own characters.


@pytest.mark.parametrize(
    ("there", "said"),
    [("TNF-α", "TNF-a"), ("TNF-α", "TNF-alpha"), ("µg", "ug"), ("naïve", "naive"), ("café", "caf?"),
     ("Alzheimer’s", "Alzheimer's"), ("β‑cell", "beta-cell"), ("ﬁbrosis", "fibrosis"), ("e\u0301le\u0300ve", "élève"),
     ("Ptosis", "ptosis")],
)  # fmt: skip
@pytest.mark.parametrize("format", ["pubtator", "tsv", "bioc", "json", "brat"])
def test_annotation_in_plainer_characters_keeps_the_document_s_own_with_a_notice(there, said, format, tmp_path):
    document = Document("d", f"x {there} y", (Mention(2, 2 + len(there), there, "HP:1", source="gold"),))
    out = tmp_path / "out"
    write_documents([document], out, format)
    annotated = out / "d.ann" if format == "brat" else out
    content = annotated.read_text("utf-8")
    for before, after in (("\t", "\n"), ("\t", "\t"), ("<text>", "<"), ('"text": "', '", "concept')):
        content = content.replace(f"{before}{there}{after}", f"{before}{said}{after}")
    annotated.write_text(content, "utf-8")
    with pytest.warns(CorpusNotice, match="the document's own .* is kept"):
        (back,) = read_documents(out, format)
    assert back.mentions[0].text == there


@pytest.mark.parametrize("said", ["TNF-b", "NF-α ", "eizures", "TNF", "TNF-α i"])
def test_annotation_of_other_words_is_an_error_that_names_document_and_mention(said):
    with pytest.raises(CorpusError, match=r"line 3: document 'd7': mention \[2, 7\] of HP:1: found 'TNF-α', expected"):
        read(f"d7\nx TNF-α is\n2\t7\t{said}\tHP:1\n", "tsv")


def test_offsets_outside_the_text_are_an_error_that_says_how_long_it_is():
    with pytest.raises(CorpusError, match=r"'d7': mention \[3, 30\] of HP:1: found a text of 5 characters"):
        read("d7\nabcde\n3\t30\tde\tHP:1\n", "tsv")
    with pytest.raises(CorpusError, match=r"mention \[3, 3\]"):
        read("d7\nabcde\n3\t3\t\tHP:1\n", "tsv")


def test_document_whose_annotations_are_wrong_can_be_read_without_them():
    (document,) = read("d7\nabcde\n3\t30\tde\tHP:1\n", "tsv", mentions=False)
    assert (document.text, document.mentions) == ("abcde", ())


# brat.


def brat(folder, text, ann):
    (folder / "n.txt").write_bytes(text)
    (folder / "n.ann").write_text(ann, "utf-8")
    return list(read_documents(folder, "brat"))


def test_brat_offsets_are_of_the_file_as_stored_with_crlf(tmp_path):
    (document,) = brat(
        tmp_path, b"one\r\ntwo ptosis\r\n", "T1\tPhenotype 9 15\tptosis\nN1\tReference T1 HP:1\tPtosis\n"
    )
    assert document.text == "one\r\ntwo ptosis\r\n"
    assert document.mentions == (Mention(9, 15, "ptosis", "HP:1", "Ptosis", source="gold"),)
    write_documents([document], tmp_path / "out", "brat")
    assert (tmp_path / "out" / "n.txt").read_bytes() == b"one\r\ntwo ptosis\r\n"


@pytest.mark.parametrize(("text", "start", "was"), [(b"one\r\ntwo ptosis", 8, "LF"), (b"one\ntwo ptosis", 9, "CRLF")])
def test_brat_text_whose_line_ends_were_changed_is_refused_by_that_name(tmp_path, text, start, was):
    with pytest.raises(CorpusError, match=rf"line ends of n.txt have changed.*Give n.txt its {was} line ends back"):
        brat(tmp_path, text, f"T1\tPhenotype {start} {start + 6}\tptosis\n")


def test_brat_byte_order_mark_is_a_character_of_the_file_as_stored(tmp_path):
    (document,) = brat(tmp_path, codecs.BOM_UTF8 + b"ptosis", "T1\tPhenotype 1 7\tptosis\n")
    assert document.mentions[0].text == "ptosis"


def test_brat_span_over_a_line_break_is_written_as_fragments(tmp_path):
    document = Document("n", "abc\n  def", (Mention(0, 9, "abc\n  def", "HP:1", source="gold"),))
    write_documents([document], tmp_path / "out", "brat")
    assert (tmp_path / "out" / "n.ann").read_text() == "T1\tPhenotype 0 3;6 9\tabc def\nN1\tReference T1 HP:1\t\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(read_documents(tmp_path / "out")) == [document]


def test_brat_fragments_with_words_between_cover_them_with_a_notice(tmp_path):
    with pytest.warns(CorpusNotice, match="2 fragments; the mention covers what is between"):
        (document,) = brat(tmp_path, b"short fingers and toes", "T1\tPhenotype 0 5;18 22\tshort toes\n")
    assert document.mentions[0].text == "short fingers and toes"
    with pytest.raises(CorpusError, match="expected 'short nails'"):
        brat(tmp_path, b"short fingers and toes", "T1\tPhenotype 0 5;18 22\tshort nails\n")


@pytest.mark.parametrize(
    "identifier", ["../up", "/etc/passwd", "a/../../b", "a//b", ".", "a\\b", "a/.b", "x" * 300, "a\nb"]
)
def test_ids_never_lead_out_of_the_folder(tmp_path, identifier):
    with pytest.raises(CorpusError, match="its id cannot name a file"):
        write_documents([Document(identifier, "x")], tmp_path / "sub" / "out", "brat")
    assert list(tmp_path.iterdir()) == []


def test_brat_line_that_is_none_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"n.ann, line 1: found .*expected 'T1<tab>Type start end"):
        brat(tmp_path, b"ptosis", "T1\tPhenotype zero 6\tptosis\n")


# Encodings and damaged files.


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("format", ["text", "json", "pubtator", "tsv"])
def test_other_encodings_are_refused_by_name(encoding, format):
    with pytest.raises(CorpusError, match=f"found {encoding.upper()}.*expected UTF-8"):
        read("1|t|Ptosis".encode(encoding), format)


def test_text_in_latin_1_is_refused_with_the_byte():
    with pytest.raises(CorpusError, match="not UTF-8: found byte 0xE9 at byte 3.*Convert the file to UTF-8"):
        read("café".encode("latin-1"), "text")
    with pytest.raises(CorpusError, match="byte 0xE9 at byte 3 of line 2"):
        read("7\ncafé\n".encode("latin-1"), "tsv")


@pytest.mark.parametrize("raw", ["ptosis".encode("utf-16-le"), b"\x00\x01binary"])
def test_text_with_nul_is_refused(raw):
    with pytest.raises(CorpusError, match="is not text: found NUL at character"):
        read(raw, "text")


def test_text_keeps_its_line_ends_and_loses_its_byte_order_mark():
    assert read(codecs.BOM_UTF8 + b"a\r\nb\rc\n", "text")[0].text == "a\r\nb\rc\n"


def test_bioc_in_an_encoding_that_it_declares_is_read():
    text = bioc(
        "<passage><offset>0</offset><text>café</text></passage>", head='<?xml version="1.0" encoding="latin-1"?>'
    )
    assert read(text.encode("latin-1"), "bioc")[0].text == "café"


@pytest.mark.parametrize("format", ["json", "bioc", "pubtator", "tsv", "csv"])
@pytest.mark.parametrize("document", [Document("d", "a\ud83db"), Document("d\udc00", "ab")])
def test_half_a_character_is_refused_in_every_format(format, document):
    with pytest.raises(CorpusError, match=r"lone surrogate: found U\+D"):
        written(document, format)


def test_half_a_character_in_json_is_refused_and_a_pair_is_one_character():
    with pytest.raises(CorpusError, match="'d' has a lone surrogate"):
        read('{"id": "d", "text": "\\ud83d"}', "json")
    assert read('{"id": "d", "text": "\\ud83d\\ude00"}', "json")[0].text == "😀"


@pytest.mark.parametrize("format", ["json", "bioc", "pubtator", "tsv"])
def test_file_that_is_cut_off_yields_what_came_before_and_is_refused(format):
    many = [Document(f"d{n}", "ptosis here", (Mention(0, 6, "ptosis", "HP:1", source="gold"),)) for n in range(3)]
    out = io.BytesIO()
    write_documents(many, out, format)
    raw = out.getvalue().rstrip()
    cut = {"json": -3, "bioc": -30, "pubtator": -18, "tsv": -6}[format]
    read_before = []
    with pytest.raises(CorpusError):
        read_before.extend(document.id for document in read_documents(io.BytesIO(raw[:cut]), format))
    assert read_before == ["d0", "d1"]


def test_tsv_that_ends_after_an_id_is_refused():
    with pytest.raises(CorpusError, match="ends at line 4.*'d2' without a text"):
        read("d1\ntext\n\nd2", "tsv")


@pytest.mark.parametrize("format", ["json", "bioc", "pubtator", "tsv"])
def test_two_documents_of_one_id_are_refused(format):
    out = io.BytesIO()
    write_documents([Document("d1", "one"), Document("d1", "two")], out, format)
    with pytest.raises(CorpusError, match="two documents have the id 'd1'|has two lines"):
        list(read_documents(io.BytesIO(out.getvalue()), format))


@pytest.mark.parametrize("format", ["json", "pubtator", "tsv", "bioc", "text"])
def test_empty_file(format):
    if format == "bioc":
        with pytest.raises(CorpusError, match="not well-formed"):
            read("", format)
    else:
        assert [document.text for document in read("", format)] == ([""] if format == "text" else [])


def test_json_may_be_an_array_or_one_object_over_lines_and_may_lack_ids():
    assert [d.text for d in read('[{"text": "a"},\n {"text": "b", "id": 7}]', "json")] == ["a", "b"]
    assert [d.id for d in read('{"text": "a"}\n\n{"text": "b"}\n', "json")] == ["stream-1", "stream-2"]
    assert read(json.dumps({"id": "x", "text": "a"}, indent=2), "json")[0].id == "x"


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"id": "d"}', "expected an object with a field 'text'"),
        ('{"text": 7}', "expected an object with a field 'text'"),
        ("[1]", "item 1"),
        ('{"text": "a", "mentions": {}}', "mentions: found"),
        ('{"text": "a", "mentions": [{"start": "0", "end": 1, "concept_id": "X"}]}', "mention 0: start: found '0'"),
        ('{"text": "a", "mentions": [{"start": 0, "end": 1}]}', "mention 0: concept_id: found None"),
        ('{"text": "a", "mentions": [{"start": true, "end": 1, "concept_id": "X"}]}', "start: found True"),
        ('{"text": "a", "passages": [{"kind": "t", "start": 0, "end": 9}]}', "passage 't': found"),
        ('{"text": "a", "score": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"text": "a", "mentions": [{"start": %s, "end": 1, "concept_id": "X"}]}' % ("9" * 5000), "not JSON"),
        ('{"text": "a", "id": [1]}', "id: found"),
        ('{"text": "a", "mentions": [{"start": 0, "end": 1, "concept_id": "X", "score": 1e999}]}', "score: found inf"),
        ('{"text": "a", "mentions": [{"start": 0, "end": 1, "concept_id": "X", "score": -1}]}', "score: found -1.0"),
        ('{"text": "a", "offset_unit": "words"}', "offset_unit: found 'words'"),
    ],
)  # fmt: skip
def test_json_of_another_shape_is_refused_by_the_field(line, match):
    with pytest.raises(CorpusError, match=match):
        read(line, "json")


def test_scores_that_are_no_numbers_are_refused():
    document = Document("d", "ptosis", (Mention(0, 6, "ptosis", "HP:1", score=float("nan")),))
    for format in ("json", "csv", "bioc", "tsv"):
        with pytest.raises(CorpusError, match="score of mention"):
            written(document, format)


# Hostile XML.

BOMB = '<!DOCTYPE c [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE c [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
PARAMETER = '<!DOCTYPE c [<!ENTITY % a SYSTEM "http://example.invalid/x"> %a;]>'


@pytest.mark.parametrize("head", [BOMB, EXTERNAL, PARAMETER])
def test_bioc_with_entities_of_its_own_is_refused(head):
    text = bioc("<passage><offset>0</offset><text>&a;</text></passage>", head=head)
    with pytest.raises(CorpusError, match="the XML declares an entity: found '[ab]'"):
        read(text, "bioc")


def test_bioc_doctype_is_accepted_and_never_loaded():
    head = '<!DOCTYPE collection SYSTEM "http://example.invalid/BioC.dtd">'
    assert read(bioc("<passage><offset>0</offset><text>a</text></passage>", head=head), "bioc")[0].text == "a"
    with pytest.raises(CorpusError, match="an entity that is not declared: found 'alpha'"):
        read(bioc("<passage><offset>0</offset><text>&alpha;</text></passage>", head=head), "bioc")


def test_bioc_offset_that_asks_for_a_gigabyte_of_blanks_is_refused():
    with pytest.raises(CorpusError, match="offset of passage 1: found 1000000000"):
        read(bioc("<passage><offset>1000000000</offset><text>a</text></passage>"), "bioc")


def test_bioc_comment_that_never_ends_is_refused_before_it_was_read_whole():
    stream = io.BytesIO(b"<collection><!--" + b"x" * 60_000_000)
    with pytest.raises(CorpusError, match="a tag or comment of more than"):
        list(read_documents(stream, "bioc"))
    assert stream.tell() < 20_000_000


def test_bioc_that_is_nested_too_deep_is_refused():
    with pytest.raises(CorpusError, match="more than 50 elements"):
        read("<collection>" + "<x>" * 1000, "bioc")


def test_xml_that_is_not_bioc_is_refused():
    with pytest.raises(CorpusError, match="found <html>, expected <collection>"):
        read("<html></html>", "bioc")


# Size.


def test_long_lines_are_read_and_documents_are_streamed():
    document = Document("d", "ptosis " * 300_000, (Mention(0, 6, "ptosis", "HP:1", source="gold"),))
    for format in ("json", "pubtator", "tsv", "bioc"):
        (back,) = read(written(document, format), format)
        assert len(back.text) == 2_100_000


@pytest.mark.parametrize("format", ["json", "pubtator", "tsv", "bioc"])
def test_memory_does_not_grow_with_the_number_of_documents(format, tmp_path):
    def many():
        for number in range(3000):
            yield Document(str(number), "ptosis " * 200)

    write_documents(many(), tmp_path / "out", format)
    assert (tmp_path / "out").stat().st_size > 4_000_000
    tracemalloc.start()
    count = sum(1 for _ in read_documents(tmp_path / "out", format))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3000
    # BioC is parsed in chunks of 256 kB, whose documents wait.
    assert peak < (2_500_000 if format == "bioc" else 1_500_000)


@pytest.mark.parametrize(
    ("there", "given"),
    [("e\u0301" * 2000, "é" * 1999 + "x"), ("ﬃ" * 60, "f" * 60 + "x"), ("\u0301" * 60, "\u0301" * 30 + "x")],
)
def test_annotations_written_to_be_slow_are_refused(there, given):
    """Trying one reading after the other would not end."""
    with pytest.raises(CorpusError):
        read(f"d\n{there}\n0\t{len(there)}\t{given}\tHP:1\n", "tsv")


# CSV and files.


def test_csv_cells_are_safe_in_a_spreadsheet():
    document = Document("=id", '=HYPERLINK("x")', (Mention(0, 15, '=HYPERLINK("x")', "@x", "+n", source="-s"),))
    out = io.StringIO(newline="")
    write_csv([document], out)
    assert out.getvalue().splitlines()[1].startswith('"\'=id",0,15,"\'=HYPERLINK(""x"")","\'@x","\'+n",1.0,"\'-s"')


def test_csv_is_written_only():
    with pytest.raises(CorpusError, match="csv holds no texts and can only be written"):
        read("a,b", "csv")


def test_format_by_name(tmp_path):
    assert [format_of(name).name for name in ("a.TXT", "a.BioC.XML", "ex.PubTator", "a.jsonl", "a.json", "a.tsv")] == [
        "text", "bioc", "pubtator", "json", "json", "tsv",
    ]  # fmt: skip
    assert format_of("a.docx") is None
    (tmp_path / "a.txt").write_text(PUBTATOR)
    assert len(list(read_documents(tmp_path / "a.txt", "text"))) == 1
    assert len(list(read_documents(tmp_path / "a.txt"))) == 2
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(CorpusError, match="its format is not known by its name: found '.docx'"):
        read_documents(tmp_path / "a.docx")
    with pytest.raises(CorpusError, match="does not exist"):
        read_documents(tmp_path / "b.txt")
    with pytest.raises(CorpusError, match="format: found 'word', expected one of text, json"):
        read("x", "word")


def test_what_cannot_be_written_leaves_no_file(tmp_path):
    def some():
        yield Document("a", "x")
        yield Document("b|c", "x")

    with pytest.raises(CorpusError):
        write_documents(some(), tmp_path / "out.pubtator")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(CorpusError, match=r"out.jsonl exists.*--overwrite"):
        write_documents([Document("a", "x")], tmp_path / "out.jsonl")
    write_documents([Document("a", "x")], tmp_path / "out.jsonl", overwrite=True)
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"id": "a", "text": "x", "mentions": []}
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_two_fields_of_one_name_in_json_are_refused():
    with pytest.raises(CorpusError, match="line 1 is not JSON: found two fields 'id'"):
        list(read_documents(io.BytesIO(b'{"id": "1", "id": "2", "text": "tall"}'), "json"))


KILLED = """
import os, sys
from weightsmith.core.io import _atomic
from weightsmith_phenotype import Document
from weightsmith_phenotype.formats import write_documents

def replace(one, other, rename=os.replace):
    rename(one, other)
    if str(one) == sys.argv[1]:
        os._exit(9)

os.replace = replace
if sys.argv[2] == "two renames":
    _atomic._exchange = lambda one, other: False
write_documents([Document("b", "y")], sys.argv[1], "brat", overwrite=True)
"""


@pytest.mark.parametrize("system", ["one exchange", "two renames"])
def test_a_folder_that_is_overwritten_survives_a_kill_and_a_failed_run(tmp_path, system):
    out = tmp_path / "out"
    write_documents([Document("a", "x")], out, "brat")
    subprocess.run([sys.executable, "-c", KILLED, str(out), system], check=False)
    with pytest.raises(ZeroDivisionError):
        write_documents((1 / 0 for _ in "x"), out, "brat", overwrite=True)
    name = "a" if system == "two renames" else "b"
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.ann", f"{name}.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
