"""The REST interface: tagging, search, export, and what is refused."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import tempfile
import threading
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from google.protobuf.json_format import Parse
from phenopackets import Phenopacket

from weightsmith_phenotype import Mention, PhenoTagger
from weightsmith_phenotype.serve import create_app

BASE = "http://127.0.0.1:8421"


@pytest.fixture
def client(app):
    with TestClient(app, base_url=BASE) as client:
        yield client


def refused(answer, status):
    """The detail of a problem, after its form was checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body.keys() == {"title", "status", "detail"}
    assert body["status"] == status
    return body["detail"]


def mention(text, words, concept, **fields):
    start = text.index(words)
    return {"start": start, "end": start + len(words), "text": words, "concept_id": concept, **fields}


def test_mentions_have_offsets_in_code_points_and_contexts(client):
    text = "\N{GRINNING FACE} Short-stature/obesity, no cleft palate."
    answer = client.post("/api/tag", json={"text": text})
    assert answer.status_code == 200
    body = answer.json()
    assert body["ontology"] == {"name": "hp", "version": "hp/releases/2030-01-02", "concepts": 18}
    found = [(m["start"], m["end"], m["concept_id"], m["negated"]) for m in body["mentions"]]
    assert found == [
        (2, 15, "HP:0004322", False),
        (16, 23, "HP:0001513", False),
        (28, 40, "HP:0000175", True),
    ]
    assert all(text[m["start"] : m["end"]] == m["text"] for m in body["mentions"])


def test_the_tagger_itself_answers(small_tagger):
    with TestClient(create_app(small_tagger), base_url=BASE) as client:
        (found,) = client.post("/api/tag", json={"text": "\N{GRINNING FACE} He has no short-stature."}).json()[
            "mentions"
        ]
    assert (found["start"], found["concept_id"], found["negated"]) == (12, "HP:0004322", True)


def test_empty_text_has_no_mentions(client):
    assert client.post("/api/tag", json={"text": ""}).json()["mentions"] == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('{"text": 3}', "text: Input should be a valid string"),
        ('{"texts": "a"}', "text: Field required"),
        ('{"text": "a", "more": 1}', "more: Extra inputs are not permitted"),
        ('{"text": "\\ud800"}', "surrogate"),
        ("{", "JSON decode error"),
        ("[" * 100_000, ""),
    ],
)
def test_requests_that_are_not_as_described_are_refused(client, body, says):
    answer = client.post("/api/tag", content=body, headers={"content-type": "application/json"})
    status = 400 if body.startswith("[") else 422
    assert says in refused(answer, status)


def test_a_refusal_does_not_quote_the_text(client):
    answer = client.post("/api/tag", json={"text": ["the secret words"]})
    assert "secret" not in answer.text


def test_text_beyond_the_limit_is_refused(flagging_tagger):
    from weightsmith_phenotype.serve import Limits

    with TestClient(create_app(flagging_tagger, limits=Limits(max_bytes=10)), base_url=BASE) as client:
        assert client.post("/api/tag", json={"text": "é" * 5}).status_code == 200
        assert "found 11 bytes, expected at most 10" in refused(
            client.post("/api/tag", json={"text": "é" * 5 + "a"}), 413
        )


class TestUpload:
    @pytest.mark.parametrize("name", ["note.txt", "NOTE.MD", "C:\\notes\\note.txt"])
    def test_text_files_are_tagged(self, client, name):
        answer = client.post("/api/upload", files={"file": (name, "\ufeffHe has\r\nataxia.".encode())})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["text"] == "He has\r\nataxia."
        assert [(m["start"], m["text"]) for m in body["mentions"]] == [(8, "ataxia")]
        assert body["filename"] == name.rpartition("\\")[2]

    @pytest.mark.parametrize(
        ("name", "content", "status", "says"),
        [
            ("note.pdf", b"%PDF", 415, "found .pdf, expected .txt or .md"),
            ("note", b"ataxia", 415, "found no ending"),
            ("note.txt", "ataxia".encode("utf-16"), 415, "found UTF-16"),
            ("note.txt", b"caf\xe9", 415, "byte 3 is not UTF-8"),
            ("note.txt", b"a" * ((1 << 20) + 1), 413, "found 1,048,577 bytes"),
        ],
    )
    def test_other_files_are_refused(self, client, name, content, status, says):
        assert says in refused(client.post("/api/upload", files={"file": (name, content)}), status)

    def test_forms_without_one_file_are_refused(self, client):
        file = ("a.txt", b"ataxia")
        says = "form: found a file in the field 'other', expected one .txt or .md file in the field 'file'"
        assert says in refused(client.post("/api/upload", files={"other": file}), 422)
        says = "found a text in the field 'file', expected one"
        assert says in refused(client.post("/api/upload", files={"file": (None, b"ataxia")}), 422)
        says = "found a file in the field 'file', a file in the field 'file', expected one"
        assert says in refused(client.post("/api/upload", files=[("file", file), ("file", file)]), 422)
        says = "a text in the field 'a'"
        assert says in refused(client.post("/api/upload", files={"file": file}, data={"a": "b"}), 422)
        assert "Too many files" in refused(client.post("/api/upload", files=[("file", file)] * 9), 400)
        assert "multipart" in refused(client.post("/api/upload", content=b"ataxia"), 415)
        assert "boundary" in refused(
            client.post("/api/upload", content=b"x", headers={"content-type": "multipart/form-data"}), 400
        )

    def test_a_large_file_stays_in_memory(self, flagging_tagger, monkeypatch):
        from weightsmith_phenotype.serve import Limits

        def refuse(*_):
            raise AssertionError("a file was written to the disk")

        monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
        with TestClient(create_app(flagging_tagger, limits=Limits(max_bytes=4 << 20)), base_url=BASE) as client:
            answer = client.post("/api/upload", files={"file": ("a.txt", b" " * (2 << 20) + b"ataxia")})
        assert [m["start"] for m in answer.json()["mentions"]] == [2 << 20]


@pytest.mark.parametrize("path", ["/api/tag", "/api/export", "/api/insight"])
@pytest.mark.parametrize("headers", [{"content-type": "text/plain"}, {}])
def test_requests_that_are_not_json_are_refused_by_type(client, path, headers):
    detail = refused(client.post(path, content=b'{"text": "ataxia"}', headers=headers), 415)
    found = headers.get("content-type", "none")
    assert detail == f"content-type: found {found}, expected application/json."


class TestTerms:
    @pytest.mark.parametrize(
        ("query", "found"),
        [
            (
                "cleft",
                ["HP:0000175", "HP:0000204", "HP:0000202", "HP:0410031"],
            ),  # shorter names that begin so come first
            ("PALATE cleft", ["HP:0000175", "HP:0410031"]),
            ("fits", ["HP:0001250"]),
            ("drooping eye", ["HP:0000508"]),
            ("short stature", ["HP:0004322", "HP:0003510"]),
            ("HP:0001251", ["HP:0001251"]),
            ("HP_0001251", ["HP:0001251"]),
            ("http://purl.obolibrary.org/obo/HP_0001251", ["HP:0001251"]),
            ("1251", ["HP:0001251"]),
            ("HP:00012", ["HP:0001250", "HP:0001251"]),
            ("HP:0007050", ["HP:0001251"]),
            ("HP:0009999", ["HP:0004322"]),
            ("HP:0008888", ["HP:0000204", "HP:0000202"]),
            ("Phenotypic abnormality", []),
            ("nothing like this", []),
            ("?!", []),
            ("", []),
        ],
    )
    def test_terms_are_found_by_name_synonym_and_id(self, client, query, found):
        body = client.get("/api/terms", params={"query": query}).json()
        assert [hit["id"] for hit in body["terms"]] == found
        assert body["total"] == len(found)

    def test_a_hit_says_what_fits(self, client):
        def first(query):
            hit = client.get("/api/terms", params={"query": query}).json()["terms"][0]
            return hit["kind"], hit["match"]

        assert first("seizure") == ("name", "Seizure")
        assert first("epileptic") == ("synonym", "Epileptic seizure")
        assert first("HP:0007050") == ("replaced", "HP:0007050")
        assert first("HP:0008888") == ("consider", "HP:0008888")

    def test_the_list_is_cut_and_counted(self, client):
        body = client.get("/api/terms", params={"query": "se", "limit": 2}).json()
        assert len(body["terms"]) == 2
        assert body["total"] == 4
        assert "limit" in refused(client.get("/api/terms", params={"query": "a", "limit": 0}), 422)
        assert "query" in refused(client.get("/api/terms"), 422)

    def test_a_term_has_its_place(self, client):
        body = client.get("/api/terms/HP:0000175").json()
        assert body["definition"] == "A gap in the roof of the mouth."
        assert body["synonyms"] == [{"text": "Palatoschisis", "scope": "EXACT", "kind": ""}]
        assert [parent["name"] for parent in body["parents"]] == ["Abnormal palate morphology", "Orofacial cleft"]
        assert body["children"] == [{"id": "HP:0410031", "name": "Submucous cleft palate"}]
        assert body["concept"]

    def test_merged_and_replaced_ids_lead_to_the_live_term_others_do_not(self, client):
        assert client.get("/api/terms/HP:0007050").json()["id"] == "HP:0001251"
        assert client.get("/api/terms/HP:0009999").json()["id"] == "HP:0004322"
        assert not client.get("/api/terms/HP:0000118").json()["concept"]
        assert "Consider HP:0000204, HP:0000202" in refused(client.get("/api/terms/HP:0008888"), 404)
        assert "no such term" in refused(client.get("/api/terms/HP:9999999"), 404)
        assert "no such term" in refused(client.get("/api/terms/%3Cscript%3E"), 404)


class TestExport:
    TEXT = "\N{GRINNING FACE} Ataxia, no cleft palate. Her father's migraine. Possible ptosis. Ataxia again."

    def given(self):
        first = mention(self.TEXT, "Ataxia", "HP:0007050")  # a merged id
        again = {**first, "start": self.TEXT.rindex("Ataxia"), "end": self.TEXT.rindex("Ataxia") + 6}
        return [
            again,
            first,
            mention(self.TEXT, "cleft palate", "HP:0000175", negated=True, score=0.97, source="classifier"),
            mention(self.TEXT, "migraine", "HP:0002076", family=True),
        ]

    def test_a_phenopacket_is_one(self, client):
        body = {"text": self.TEXT, "mentions": self.given(), "subject_id": "P-7", "document_id": "visit-1"}
        answer = client.post("/api/export", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-disposition"] == 'attachment; filename="phenopacket.json"'
        packet = Parse(answer.text, Phenopacket())
        assert packet.id
        assert packet.subject.id == "P-7"
        features = {(f.type.id, f.type.label, f.excluded) for f in packet.phenotypic_features}
        assert features == {("HP:0001251", "Ataxia", False), ("HP:0000175", "Cleft palate", True)}
        assert packet.meta_data.phenopacket_schema_version.startswith("2.0")
        assert packet.meta_data.created.seconds > 0
        assert packet.meta_data.created_by
        (resource,) = packet.meta_data.resources
        assert (resource.namespace_prefix, resource.version) == ("HP", "2030-01-02")

    def test_a_phenopacket_without_terms_is_valid(self, client):
        answer = client.post("/api/export", json={"text": "well", "mentions": []})
        assert list(Parse(answer.text, Phenopacket()).phenotypic_features) == []

    def test_json_holds_all_mentions_in_order(self, client):
        body = {"text": self.TEXT, "mentions": self.given()}
        found = client.post("/api/export", params={"format": "json"}, json=body).json()
        assert [(m["concept_id"], m["name"]) for m in found["mentions"]] == [
            ("HP:0001251", "Ataxia"),
            ("HP:0000175", "Cleft palate"),
            ("HP:0002076", "Migraine"),
            ("HP:0001251", "Ataxia"),
        ]

    def test_csv_has_a_row_per_mention_and_no_formula(self, client):
        text = "=1+1 ataxia"
        given = [mention(text, "=1+1 ataxia", "HP:0001251", negated=True)]
        answer = client.post("/api/export", params={"format": "csv"}, json={"text": text, "mentions": given})
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        (row,) = csv.DictReader(io.StringIO(answer.text))
        assert (row["text"], row["concept_id"], row["name"]) == ("'=1+1 ataxia", "HP:0001251", "Ataxia")
        assert (row["negated"], row["family"], row["source"]) == ("true", "false", "reader")

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"start": 3}, "expected 'Ataxia'"),
            ({"start": 90, "end": 96}, "expected 'Ataxia'"),
            ({"end": 2}, "expected 'Ataxia'"),
            ({"start": -1}, "mentions.0.start: Input should be greater than or equal to 0"),
            (
                {"concept_id": "HP:0008888"},
                "mentions.0.concept_id: 'HP:0008888' is not a term that a mention can have. Consi",
            ),
            ({"concept_id": "HP:0000118"}, "mentions.0.concept_id"),
            ({"concept_id": "x" * 65}, "mentions.0.concept_id: String should have at most 64 characters"),
            ({"score": 1.5}, "mentions.0.score"),
            ({"name": "mine"}, "mentions.0.name: Extra inputs"),
        ],
    )
    def test_mentions_that_do_not_fit_the_text_are_refused(self, client, change, says):
        given = mention(self.TEXT, "Ataxia", "HP:0001251") | change
        assert says in refused(client.post("/api/export", json={"text": self.TEXT, "mentions": [given]}), 422)

    def test_offsets_in_utf16_units_are_refused(self, client):
        given = mention(self.TEXT, "Ataxia", "HP:0001251")
        given = {**given, "start": given["start"] + 1, "end": given["end"] + 1}
        assert "not bytes, UTF-16 units" in refused(
            client.post("/api/export", json={"text": self.TEXT, "mentions": [given]}), 422
        )

    def test_an_unknown_format_is_refused(self, client):
        answer = client.post("/api/export", params={"format": "xml"}, json={"text": "", "mentions": []})
        assert "phenopacket" in refused(answer, 422)


def test_the_schema_names_every_answer(client):
    schema = client.get("/openapi.json").json()
    wanted = {
        "/api/status": {"200", "421", "429"},
        "/api/tag": {"200", "400", "403", "408", "413", "415", "421", "422", "429"},
        "/api/upload": {"200", "400", "403", "408", "413", "415", "421", "422", "429"},
        "/api/terms": {"200", "421", "422", "429"},
        "/api/terms/{identifier}": {"200", "404", "421", "422", "429"},
        "/api/export": {"200", "400", "403", "408", "413", "415", "421", "422", "429"},
        "/api/insight": {"200", "400", "403", "404", "408", "413", "415", "421", "422", "429", "503"},
    }
    assert schema["paths"].keys() == wanted.keys()
    for path, answers in wanted.items():
        (operation,) = schema["paths"][path].values()
        assert operation["responses"].keys() == answers | {"500", "503"}, path
        for code, response in operation["responses"].items():
            assert response["description"]
            for media, content in response["content"].items():
                assert code == "200" or media == "application/problem+json", (path, code, media)
                assert content["schema"], (path, code, media)
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    references = set(_references(schema))
    assert {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]} == references


def _references(node):
    if isinstance(node, dict):
        yield from [node["$ref"]] if "$ref" in node else []
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_there_are_no_pages_that_load_from_elsewhere(client):
    for path in ("/docs", "/redoc", "/page/../app.py", "/page/%2e%2e%2fapp.py", "/page/none.css", "/api/none"):
        assert refused(client.get(path), 404)
    for name in ("page.css", "page.js", "note.js", "icon.svg"):
        content = client.get(f"/page/{name}")
        assert content.status_code == 200
        assert "http://" not in content.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in content.text
        assert "innerHTML" not in content.text
    assert client.get("/").text.startswith("<!doctype html>")


def test_other_requests_are_served_while_a_text_is_tagged(small_tagger):
    begun, answered = threading.Event(), threading.Event()

    class Slow(PhenoTagger):
        def tag(self, text):
            begun.set()
            assert answered.wait(60)
            return [Mention(0, 1, text[0], "HP:0001251", "Ataxia")]

    async def both():
        transport = httpx.ASGITransport(create_app(Slow(small_tagger.ontology)))
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            tagging = asyncio.create_task(client.post("/api/tag", json={"text": "x"}))
            while not begun.is_set():
                await asyncio.sleep(0.01)
            search = await client.get("/api/terms?query=ataxia")
            answered.set()
            return search.status_code, (await tagging).status_code

    assert asyncio.run(both()) == (200, 200)


class TestInsight:
    def test_genes_and_diseases_are_ranked(self, client):
        body = client.post("/api/insight", json={"terms": ["HP:0000175", "HP:0007359"]}).json()
        assert (body["genes"][0]["id"], body["genes"][0]["name"]) == ("NCBIGene:11", "PALA")
        best = body["diseases"][0]
        assert (best["id"], best["matched"]) == ("OMIM:100001", ["HP:0000175", "HP:0007359"])
        p_values = [row["p_value"] for row in body["diseases"]]
        assert p_values == sorted(p_values)
        assert 0 < p_values[0] < 0.5
        assert body["source"] == "HPO annotations of 2030-01-02"

    def test_the_p_value_is_the_hypergeometric_tail(self, client):
        from scipy.stats import hypergeom

        # Each annotation counts at its term and at all ancestors. Syndrome 1: palate, its two parents, head
        # or neck; focal seizure, seizure, nervous system; abnormality, All. Syndrome 2: ataxia and three above.
        # Syndrome 3: short stature, obesity, growth; ptosis, head or neck; two above.
        body = client.post("/api/insight", json={"terms": ["HP:0000175", "HP:0001251"]}).json()
        total = 9 + 4 + 7
        rows = {row["id"]: row["p_value"] for row in body["diseases"]}
        assert rows["OMIM:100001"] == pytest.approx(hypergeom.sf(0, total, 9, 2))
        assert rows["OMIM:100002"] == pytest.approx(hypergeom.sf(0, total, 4, 2))
        assert list(rows) == ["OMIM:100002", "OMIM:100001"]

    def test_rows_with_not_are_never_asserted(self, client):
        body = client.post("/api/insight", json={"terms": ["HP:0001250", "HP:0001251"]}).json()
        rows = {row["id"]: row for row in body["diseases"]}
        assert rows["OMIM:100001"]["matched"] == ["HP:0001250"]
        assert rows["OMIM:100002"]["matched"] == ["HP:0001251"]
        assert rows["OMIM:100002"]["absent"] == ["HP:0001250"]
        only = client.post("/api/insight", json={"terms": ["HP:0001250"]}).json()
        assert [row["id"] for row in only["diseases"]] == ["OMIM:100001"]

    def test_excluded_terms_are_shown_and_change_no_rank(self, client):
        terms = ["HP:0000508", "HP:0001251"]
        before = client.post("/api/insight", json={"terms": terms}).json()["diseases"]
        after = client.post("/api/insight", json={"terms": terms, "excluded": ["HP:0001513"]}).json()["diseases"]
        assert [(row["id"], row["p_value"]) for row in before] == [(row["id"], row["p_value"]) for row in after]
        assert {row["id"]: row["denied"] for row in after} == {"OMIM:100003": ["HP:0001513"], "OMIM:100002": []}

    def test_implied_merged_and_unknown_terms(self, client):
        terms = ["HP:0000175", "HP:0000202", "HP:0007050", "HP:7777777", "X:1"]
        body = client.post("/api/insight", json={"terms": terms}).json()
        assert [term["id"] for term in body["used"]] == ["HP:0000175", "HP:0001251"]
        assert body["implied"] == [{"id": "HP:0000202", "name": "Orofacial cleft"}]
        assert body["unknown"] == ["HP:7777777", "X:1"]

    def test_without_terms_nothing_is_ranked(self, client):
        body = client.post("/api/insight", json={"terms": []}).json()
        assert body["genes"] == body["diseases"] == []

    def test_it_says_when_it_is_not_ready(self, flagging_tagger, annotations, tmp_path, caplog):
        from weightsmith_phenotype.serve import Insight

        waiting = Insight(annotations)  # not started, as if still reading
        waiting.start = lambda: None
        with TestClient(create_app(flagging_tagger, insight=waiting), base_url=BASE) as client:
            answer = client.post("/api/insight", json={"terms": ["HP:0001251"]})
            assert "being read" in refused(answer, 503)
            assert int(answer.headers["retry-after"]) > 0
            assert client.get("/api/status").json()["insight"] == "loading"
        with TestClient(create_app(flagging_tagger), base_url=BASE) as client:
            assert refused(client.post("/api/insight", json={"terms": []}), 404)
            assert client.get("/api/status").json()["insight"] == "unavailable"


def test_nothing_is_written_or_logged(flagging_tagger, insight, tmp_path, monkeypatch, caplog):
    caplog.set_level(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with TestClient(create_app(flagging_tagger, insight=insight), base_url=BASE) as client:
        text = "Zanzibar patient with ataxia"
        client.post("/api/tag", json={"text": text})
        client.post("/api/upload", files={"file": ("zanzibar.txt", text.encode())})
        given = mention(text, "ataxia", "HP:0001251")
        assert client.post("/api/export", json={"text": text, "mentions": [given]}).status_code == 200
        client.post("/api/export", json={"text": text, "mentions": [given | {"start": 0}]})
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
    assert "anzibar" not in json.dumps(ours)
    assert list(Path(tmp_path).iterdir()) == []
