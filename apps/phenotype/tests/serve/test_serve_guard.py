"""What stands before the routes: host, origin, size and rate; and the server's socket."""

from __future__ import annotations

import logging
import socket
import threading

import httpx
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from weightsmith.core.errors import HyperparameterError
from weightsmith.core.web import listen
from weightsmith_phenotype import PhenoTagger
from weightsmith_phenotype.cli import app as phenotype
from weightsmith_phenotype.serve import HOST, Limits, create_app, run

BASE = "http://127.0.0.1:8421"


@pytest.fixture
def client(app):
    with TestClient(app, base_url=BASE) as client:
        yield client


@pytest.mark.parametrize("host", ["127.0.0.1:8421", "127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8421"])
def test_local_names_are_answered(client, host):
    assert client.get("/api/status", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8421", "127.0.0.1.evil.example", "localhost.evil.example:8421", "", "10.0.0.1"],
)
@pytest.mark.parametrize("path", ["/", "/api/status", "/openapi.json"])
def test_other_names_are_refused(client, host, path):
    answer = client.get(path, headers={"host": host})
    assert answer.status_code == 421
    assert "127.0.0.1" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": BASE}, 200),
        ({"origin": BASE, "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://localhost:8421"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "https://127.0.0.1:8421"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": BASE, "sec-fetch-site": "same-site"}, 403),
    ],
)
def test_only_our_own_page_may_send(client, headers, status):
    assert client.post("/api/tag", json={"text": "ataxia"}, headers=headers).status_code == status
    assert client.get("/api/status", headers=headers).status_code == 200


def test_a_text_under_another_type_is_not_read_as_json(client):
    answer = client.post("/api/tag", content='{"text": "ataxia"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 415


def test_every_answer_has_the_headers(client):
    answers = [
        client.get("/"),
        client.get("/page/page.js"),
        client.get("/api/none"),
        client.post("/api/tag", json={}),
        client.get("/", headers={"host": "evil.example"}),
        client.options("/api/tag", headers={"origin": "https://evil.example", "access-control-request-method": "POST"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 422, 421, 403]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_body_is_refused_by_its_declared_and_by_its_real_size(flagging_tagger):
    limits = Limits(max_bytes=1000)
    most = limits.body("/api/tag")
    with TestClient(create_app(flagging_tagger, limits=limits), base_url=BASE) as client:
        declared = client.post("/api/tag", content=b"x" * (most + 1))
        assert declared.status_code == 413
        assert f"{most:,} bytes" in declared.json()["detail"]
        chunked = client.post("/api/tag", content=(b"x" * 1000 for _ in range(most // 1000 + 1)))
        assert chunked.status_code == 413
        assert client.post("/api/tag", content=b"{}", headers={"content-length": "-1"}).status_code == 400
        assert client.post("/api/tag", json={"text": "a" * 1000}).status_code == 200


def test_rate_is_limited_per_client_and_recovers(flagging_tagger):
    now = [0.0]
    app = create_app(flagging_tagger, limits=Limits(rate=3))
    app.clock = lambda: now[0]
    with (
        TestClient(app, base_url=BASE) as client,
        TestClient(app, base_url=BASE, client=("127.0.0.2", 50000)) as other,
    ):
        assert [client.get("/api/status").status_code for _ in range(4)] == [200, 200, 200, 429]
        answer = client.get("/api/status")
        assert answer.headers["retry-after"] == "20"
        assert "More than 3 requests per minute" in answer.json()["detail"]
        assert client.get("/").status_code == 200  # the page itself is not counted
        assert other.get("/api/status").status_code == 200
        now[0] = 19.9
        assert client.get("/api/status").status_code == 429
        now[0] = 20.1
        assert client.get("/api/status").status_code == 200
        assert client.get("/api/status").status_code == 429


def test_an_answer_that_takes_too_long_is_given_up(small_tagger):
    begun, go_on = threading.Event(), threading.Event()

    class Slow(PhenoTagger):
        def tag(self, text):
            if text == "slow":
                begun.set()
                go_on.wait(20)
            return super().tag(text)

    app = create_app(Slow(small_tagger.ontology), limits=Limits(seconds=1))
    with TestClient(app, base_url=BASE) as client:
        answer = client.post("/api/tag", json={"text": "slow"})
        assert begun.is_set()
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "no answer within 1 s" in answer.json()["detail"]
        assert client.get("/api/status").status_code == 200
        assert client.post("/api/tag", json={"text": "ptosis"}).status_code == 503  # the slow one is still at work
        go_on.set()
        assert client.post("/api/tag", json={"text": "ptosis"}).status_code == 200


def test_a_failure_quotes_no_text_and_logs_where(small_tagger, caplog):
    class Broken(PhenoTagger):
        def tag(self, text):
            raise RuntimeError(f"cannot tag {text}")

    with TestClient(create_app(Broken(small_tagger.ontology)), base_url=BASE) as client:
        with caplog.at_level(logging.DEBUG):
            answer = client.post("/api/tag", json={"text": "the secret words"})
    assert answer.status_code == 500
    assert answer.json()["title"] == "Internal Server Error"
    assert "secret" not in answer.text + caplog.text
    assert "RuntimeError at" in caplog.text
    assert "test_serve_guard.py" in caplog.text


@pytest.mark.parametrize("field", ["max_bytes", "rate"])
def test_limits_are_positive(field):
    with pytest.raises(HyperparameterError, match=f"{field}: found 0, expected at least 1"):
        Limits(**{field: 0})


def test_a_real_server_answers_on_one_address_and_logs_no_query(app, serve, caplog, capfd):
    caplog.set_level(0)
    with serve(app) as address:
        assert httpx.get(f"{address}/api/terms", params={"query": "secretword"}).status_code == 200
        most = app.limits.body("/api/tag")
        refused = httpx.post(f"{address}/api/tag", content=b"x" * (most + 1000))
        assert refused.status_code == 413
        assert refused.headers["connection"] == "close"
        assert "server" not in refused.headers
        port = int(address.rpartition(":")[2])
        with pytest.raises(ConnectionRefusedError):  # another address of this machine
            socket.create_connection(("127.0.0.2", port), timeout=2)
    ours = " ".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    assert "secretword" not in ours + "".join(capfd.readouterr())


def test_a_port_in_use_is_named():
    with listen(0) as listener:
        port = listener.getsockname()[1]
        assert listener.getsockname()[0] == HOST == "127.0.0.1"
        with pytest.raises(HyperparameterError, match=f"--port {port}: found a port in use"):
            listen(port)


def test_run_says_the_address_and_opens_the_page(app, monkeypatch):
    opened, said = [], []
    ready = threading.Event()
    servers = []
    from weightsmith.core.web import _server as server

    class Recorded(server.LocalServer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            servers.append(self)

    monkeypatch.setattr(server, "LocalServer", Recorded)
    monkeypatch.setattr(server.webbrowser, "open", lambda address: (opened.append(address), ready.set()))
    with listen(0) as listener:
        thread = threading.Thread(target=run, args=(app, listener), kwargs={"say": said.append}, daemon=True)
        thread.start()
        assert ready.wait(20)
        assert said[0].startswith(opened[0])
        assert httpx.get(opened[0]).status_code == 200
        servers[0].should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def command(monkeypatch):
    """Run the command up to where it would serve; give the status of what it would have served."""
    made = []
    monkeypatch.setattr("weightsmith_phenotype.serve.run", lambda *given, **options: made.append((*given, options)))

    def command(*arguments):
        answer = CliRunner().invoke(phenotype, ["serve", "--no-open", "--port", "0", *arguments])
        if answer.exception:
            raise answer.exception
        app, listener, options = made.pop()
        assert options == {"open_page": False}
        assert listener.fileno() == -1  # closed at the end
        return app.limits, TestClient(app, base_url=BASE).get("/api/status").json()

    return command


def test_the_command_serves_the_ontology_it_is_given(command, small_obo):
    limits, status = command("--max-bytes", "99", "--rate", "7", "--ontology", str(small_obo))
    assert limits == Limits(99, 7)
    assert (status["insight"], status["max_bytes"], status["ontology"]["concepts"]) == ("loading", 99, 18)
    _, status = command("--ontology", str(small_obo), "--root", "HP:0000202")
    assert (status["insight"], status["ontology"]["concepts"]) == ("unavailable", 3)


def test_the_command_serves_a_trained_tagger(command, small_tagger, tmp_path):
    folder = tmp_path / "tagger"
    small_tagger.save_pretrained(folder)
    _, status = command("--tagger", str(folder))
    assert status["ontology"] == {"name": "hp", "version": "hp/releases/2030-01-02", "concepts": 18}


def test_a_port_in_use_is_said_before_the_tagger_is_loaded(monkeypatch):
    monkeypatch.setattr(PhenoTagger, "default", lambda: pytest.fail("the tagger was loaded"))
    with listen(0) as listener:
        port = str(listener.getsockname()[1])
        answer = CliRunner().invoke(phenotype, ["serve", "--no-open", "--port", port])
    assert isinstance(answer.exception, HyperparameterError)
