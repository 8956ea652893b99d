"""The REST interface of the kitchen: kits, corrections, exports, refusals."""

import asyncio
import copy
import io
import json
import threading

import pytest
from fastapi.testclient import TestClient

from weightsmith_kitchen import MealKit, NutritionTable
from weightsmith_kitchen.serve import Limits, create_app

RECIPE = "Pancakes\nServes 4\n2 cups flour\n3 eggs\n1 cup milk\n1. Mix all and fry it in a hot pan."


@pytest.fixture(scope="module")
def client():
    with TestClient(create_app(NutritionTable.default()), base_url="http://127.0.0.1") as made:
        yield made


@pytest.fixture(scope="module")
def made(client):
    answer = client.post("/api/recipe", json={"text": RECIPE})
    assert answer.status_code == 200
    return answer.json()


def refused(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert set(response.json()) == {"title", "status", "detail"}
    return response.json()["detail"]


def test_a_recipe_becomes_a_kit_with_a_source_for_each_number(made):
    assert made["dish"] == "Pancakes"
    assert made["servings"] == 4
    assert made["steps"] == ["Mix all and fry it in a hot pan."]
    assert [row["amount"] for row in made["rows"]] == ["2 cups", "3", "1 cup"]
    assert made["kcal"][0] == pytest.approx(sum(row["kcal"][0] for row in made["rows"]))
    assert all(row["food_id"].startswith("usda:") and row["source"] and row["basis"] for row in made["rows"])
    assert made["complete"]
    assert MealKit.from_dict(made["kit"]).kcal.value == pytest.approx(made["kcal"][0])


def test_scaling_chat_and_changes(client, made):
    doubled = client.post("/api/scale", json={"kit": made["kit"], "servings": 8}).json()
    assert doubled["kcal"][0] == pytest.approx(2 * made["kcal"][0])
    said = client.post("/api/chat", json={"kit": made["kit"], "text": "2 eggs instead of 3, no milk"}).json()
    assert said["understood"]
    assert [row["name"] for row in said["rows"]] == ["flour", "eggs"]
    added = client.post("/api/change", json={"kit": made["kit"], "place": 3, "line": "100 g butter"}).json()
    assert added["rows"][3]["kcal"][0] == pytest.approx(743)
    fewer = client.post("/api/change", json={"kit": added["kit"], "place": 3, "remove": True}).json()
    assert fewer["rows"] == made["rows"]
    hit = client.get("/api/foods", params={"q": "goat milk"}).json()["hits"][0]
    chosen = client.post("/api/change", json={"kit": made["kit"], "place": 2, "food": hit["id"]}).json()
    assert chosen["rows"][2]["food"] == hit["name"]
    assert chosen["rows"][2]["amount"] == "1 cup"


def test_what_is_not_understood_is_answered_and_changes_nothing(client, made):
    said = client.post("/api/chat", json={"kit": made["kit"], "text": "make it spicy"}).json()
    assert not said["understood"]
    assert said["rows"] == made["rows"]
    assert "Say, for example" in said["said"]


@pytest.mark.parametrize(("format", "begins"), [("pdf", b"%PDF-"), ("csv", b"ingredient,amount"), ("json", b"{")])
def test_exports(client, made, format, begins):
    answer = client.post("/api/export", params={"format": format}, json={"kit": made["kit"]})
    assert answer.status_code == 200
    assert answer.content.startswith(begins)
    assert answer.headers["content-disposition"] == f'attachment; filename="meal-kit.{format}"'


def test_an_exported_kit_is_the_kit(client, made):
    answer = client.post("/api/export", params={"format": "json"}, json={"kit": made["kit"]})
    assert MealKit.from_json(answer.text) == MealKit.from_dict(made["kit"])


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("recipe", {"text": ""}, "no ingredient line"),
        ("recipe", {"text": "1 egg\n" * 401}, "at most 400"),
        ("recipe", {"text": "1 egg", "servings": 0}, "servings"),
        ("recipe", {"text": "1 egg", "guests": 2}, "guests"),
        ("scale", {"kit": {"ingredients": []}, "servings": -1}, "servings"),
        ("scale", {"kit": {"ingredients": []}, "servings": "many"}, "servings"),
        ("scale", {"kit": {}, "servings": 2}, "meal kit"),
        ("scale", {"kit": {"ingredients": [{"name": 3}]}, "servings": 2}, "ingredient"),
        ("export", {"kit": {"ingredients": [{"name": "x", "state": {"a": 1}}]}}, "state"),
        ("export", {"kit": {"ingredients": [{"name": "x", "quantity": "-3"}]}}, "amount"),
        ("export", {"kit": {"ingredients": [{"name": "x", "kcal": ["y", 1, 2]}]}}, "ingredient"),
        ("export", {"kit": {"ingredients": [{"name": "x", "food": {}}]}}, "ingredient"),
        ("export", {"kit": {"servings": "1/0", "ingredients": []}}, "denominator"),
        ("change", {"kit": {"ingredients": []}, "place": 5, "line": "1 egg"}, "ingredient 5"),
        ("change", {"kit": {"ingredients": []}, "place": 0, "line": "   "}, "a food"),
        ("chat", {"kit": {"ingredients": []}, "text": "x" * 3000}, "text"),
    ],
)
def test_bad_requests_name_the_field(client, path, body, said):
    assert said in refused(client.post(f"/api/{path}", json=body), 422)


@pytest.mark.parametrize("encoding", ["escape", "utf-8", "utf-16"])
@pytest.mark.parametrize("path", ["scale", "change", "chat", "export?format=csv"])
def test_half_of_a_surrogate_pair_anywhere_is_refused(client, made, path, encoding):
    """Python's JSON reads it; the answer could not be written, which was said to be the server's fault."""
    kit = copy.deepcopy(made["kit"])
    kit["ingredients"][1]["unit"] = "\ud800"
    told = {"kit": kit, "servings": 2, "place": 0, "line": "2 eggs", "text": "no milk"}
    body = {key: told[key] for key in ("kit", *{"scale": ["servings"], "chat": ["text"]}.get(path, []))}
    body |= {"place": 0, "line": "2 eggs"} if path == "change" else {}
    text = json.dumps(body, ensure_ascii=encoding == "escape")
    raw = text.encode("utf-8" if encoding == "escape" else encoding, "surrogatepass")
    answer = client.post(f"/api/{path}", content=raw, headers={"content-type": "application/json"})
    assert "half of a surrogate pair" in refused(answer, 422)


def test_characters_beyond_the_first_plane_are_read(client):
    raw = json.dumps({"text": "2 eggs \U0001f95a and a \\ud800 in words"}).encode()
    assert client.post("/api/recipe", content=raw, headers={"content-type": "application/json"}).status_code == 200


def test_a_food_that_is_not_there(client, made):
    detail = refused(client.post("/api/change", json={"kit": made["kit"], "place": 0, "food": "usda:99999999"}), 404)
    assert "usda:99999999" in detail


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<!doctype html><script>alert(1)</script>",
        b"\xff\xd8\xff\xe0 not a picture",
        b"%PDF-1.4",
        b"GIF89a",
    ],
)
def test_hostile_photos_are_refused_in_words(client, content):
    detail = refused(client.post("/api/photo", files={"file": ("lunch.jpg", content, "image/jpeg")}), 422)
    assert "Traceback" not in detail
    assert len(detail) > 20


def test_a_photo_that_is_too_large_is_stopped(client):
    with TestClient(create_app(NutritionTable.default(), limits=Limits(1000)), base_url="http://127.0.0.1") as small:
        assert "larger than" in refused(small.post("/api/photo", files={"file": ("a.jpg", b"x" * 200_000)}), 413)


def test_a_photo_in_pieces_without_a_length_is_stopped_at_the_limit():
    """Without the test client, which joins the pieces before it sends them."""
    app, taken, sent = create_app(NutritionTable.default(), limits=Limits(1_000_000)), 0, []

    async def receive():
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 50_000, "more_body": taken < 100_000}  # 5 GB

    async def send(message):
        sent.append(message)

    names = {"host": "127.0.0.1", "content-type": "multipart/form-data; boundary=b", "transfer-encoding": "chunked"}
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"}
    scope |= {"path": "/api/photo", "raw_path": b"/api/photo", "query_string": b"", "root_path": ""}
    scope |= {"client": ("127.0.0.1", 5), "server": ("127.0.0.1", 80)}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in names.items()]
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 413
    assert b"larger than" in b"".join(message.get("body", b"") for message in sent)
    assert taken < 500  # some are received, and dropped, so that the client reads the answer


def test_a_photo_is_read_before_it_is_worked_on(client, monkeypatch):
    """Its file is closed by then: what is handed over are bytes."""
    from PIL import Image

    from weightsmith_kitchen.serve import app as served

    seen = []
    work = served.kit_of_photo
    monkeypatch.setattr(
        served, "kit_of_photo", lambda content, *rest, **more: seen.append(content) or work(content, *rest, **more)
    )
    file = io.BytesIO()
    Image.new("RGB", (1500, 1500), (120, 60, 20)).save(file, "BMP")  # larger than what stays in memory
    answer = client.post("/api/photo", files={"file": ("a.bmp", file.getvalue())})
    assert answer.status_code == 200
    assert seen == [file.getvalue()]


@pytest.mark.parametrize(
    "boxes",
    ["x", "[]", "[[1,2,3]]", "[[0,0,900,900]]", "[[5,5,5,5]]", '{"a":1}', "[[1,2,3,4]" + ",[1,2,3,4]" * 30 + "]"],
)
def test_boxes_that_cannot_be_used(client, boxes):
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(stream, "JPEG")
    answer = client.post("/api/photo", params={"boxes": boxes}, files={"file": ("a.jpg", stream.getvalue())})
    assert "box" in refused(answer, 422)


def test_other_pages_and_hosts_are_kept_out(client, made):
    assert refused(client.post("/api/scale", json={}, headers={"origin": "http://evil.example"}), 403)
    assert refused(client.get("/api/status", headers={"host": "evil.example"}), 421)


def test_the_schema_names_every_route(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        f"/api/{name}" for name in ("status", "recipe", "photo", "scale", "chat", "change", "foods", "export")
    }
    json.dumps(schema)


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("base.css", "page.css", "page.js", "photo.js", "dom.js", "icon.svg"):
        content = client.get(f"/page/{name}")
        assert content.status_code == 200
        assert "http://" not in content.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in content.text
        assert "innerHTML" not in content.text


def test_the_first_kit_waits_for_no_model(monkeypatch):
    """The encoder of sentences was loaded with the first name that no row has."""
    from weightsmith_kitchen.nutrition import table as module
    from weightsmith_kitchen.serve import app

    loaded = threading.Event()
    encode = module.minilm
    monkeypatch.setattr(module, "minilm", lambda texts: (encode(texts), loaded.set())[0])
    monkeypatch.setattr(app, "classifier_of", lambda: None)
    table = NutritionTable.default()
    with TestClient(create_app(table, warm_up=True), base_url="http://127.0.0.1") as client:
        assert client.get("/").status_code == 200
        assert loaded.wait(60)
