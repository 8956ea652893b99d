"""The page in a real browser: a recipe, corrections, chat, exports, a photo, hostile input, 400 pixels."""

import io
import shutil

import pytest

from weightsmith.core.web import serving
from weightsmith_kitchen import MealKit, NutritionTable
from weightsmith_kitchen.serve import create_app

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
RECIPE = "Pancakes\nServes 4\n2 cups flour\n3 eggs\n1 (14 ounce) can tomatoes\n1. Mix all and fry it in a hot pan."
WAIT = 60_000


@pytest.fixture(scope="module")
def address():
    with serving(create_app(NutritionTable.default())) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        made = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield made
        made.close()


@pytest.fixture
def page(browser, address):
    made = browser.new_page(viewport={"width": 1200, "height": 900})
    made.set_default_timeout(WAIT)
    faults = []
    outside = []
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on(
        "request",
        lambda request: outside.append(request.url) if not request.url.startswith((address, "blob:")) else None,
    )
    made.goto(address)
    yield made
    made.close()
    assert faults == []
    assert outside == []


def read(page, text=RECIPE):
    page.fill("#text", text)
    page.click("#read")
    page.wait_for_selector("#rows li")


def names(page):
    return page.locator("#rows input").evaluate_all("inputs => inputs.map(input => input.value)")


def energy(page):
    return int(page.inner_text("#total").split()[0].replace(",", ""))


def test_a_recipe_is_read_scaled_corrected_and_undone(page):
    read(page)
    assert names(page) == ["2 cups flour", "3 eggs", "1 can tomatoes"]
    before = energy(page)
    page.fill("#servings", "8")
    page.press("#servings", "Enter")
    page.wait_for_selector("#rows input >> nth=0")
    page.locator("#rows input").first.and_(page.get_by_label("Ingredient 1")).wait_for()
    page.wait_for_selector("#undo:not([disabled])")
    assert names(page)[0] == "4 cups flour"
    assert energy(page) == pytest.approx(2 * before, abs=2)
    page.click("#undo")
    assert names(page)[0] == "2 cups flour"
    assert energy(page) == before


def test_the_shopping_list_has_a_line_per_food_and_what_is_missing_is_named(page):
    read(page, "Cookies\nMakes 24 cookies\n1 cup milk\n2 eggs\n2 cups milk\n1 can xyzzy\nBy Jane Doe")
    assert names(page) == ["1 cup milk", "2 eggs", "2 cups milk", "1 can xyzzy"]
    page.click("#shopping summary")
    assert page.inner_text("#shopping").splitlines() == [
        "Shopping list: 3 foods",
        "3 cups milk",
        "2 eggs",
        "1 can xyzzy",
    ]
    assert page.inner_text("#lower") == "A lower bound: no energy of xyzzy."
    assert "makes 24 cookies" in page.inner_text("#each")
    assert "left out, no ingredient: 'By Jane Doe'" in page.inner_text("#notes")


def test_a_number_of_people_that_is_none_changes_nothing(page):
    read(page)
    before = energy(page)
    for wrong in ("abc", "-2", "0"):
        page.fill("#servings", wrong)
        page.press("#servings", "Enter")
        page.wait_for_selector(f"#alert:has-text('\"{wrong}\"')")
        assert energy(page) == before


def test_an_edited_line_keeps_what_its_package_holds(page):
    read(page)
    line = page.get_by_label("Ingredient 3")
    line.focus()
    assert line.input_value() == "1 (14 ounce) can tomatoes"
    line.fill("2 (14 ounce) can tomatoes")
    line.press("Enter")
    page.wait_for_selector("#undo:not([disabled])")
    assert "794 g" in page.inner_text("#rows li:nth-child(3)")


def test_the_chat_corrects_and_says_what_it_did(page):
    read(page)
    page.fill("#say", "2 eggs instead of 3, no flour")
    page.click("#chat button")
    page.wait_for_selector("#said:not(:empty)")
    assert page.inner_text("#said") == "eggs: 2; flour is left out"
    assert names(page) == ["2 eggs", "1 can tomatoes"]
    page.fill("#say", "make it spicy")
    page.click("#chat button")
    page.wait_for_selector("#said[data-failed]")
    assert "Say, for example" in page.inner_text("#said")
    assert names(page) == ["2 eggs", "1 can tomatoes"]


def test_a_food_is_chosen_and_an_ingredient_added_and_removed(page):
    read(page)
    page.click("#rows li:nth-child(2) .source button")
    page.fill("#query", "duck egg")
    page.locator("#hits button", has_text="duck").first.click()
    page.wait_for_selector("#undo:not([disabled])")
    assert "duck" in page.inner_text("#rows li:nth-child(2)").lower()
    page.fill("#add", "100 g butter")
    page.click("#adding button")
    page.wait_for_selector("#rows li:nth-child(4)")
    assert "743 kcal" in page.inner_text("#rows li:nth-child(4)")
    page.click("#rows li:nth-child(1) .square")
    page.wait_for_selector("#rows li:nth-child(4)", state="detached")
    assert len(names(page)) == 3


@pytest.mark.parametrize("format", ["pdf", "csv", "json"])
def test_exports_are_files(page, format):
    read(page)
    with page.expect_download() as waiting:
        page.click(f"[data-format={format}]")
    content = waiting.value.path().read_bytes()
    assert waiting.value.suggested_filename == f"meal-kit.{format}"
    if format == "json":
        assert len(MealKit.from_json(content.decode()).ingredients) == 3
    else:
        assert content.startswith({"pdf": b"%PDF-", "csv": b"ingredient,"}[format])


def test_a_hostile_recipe_is_shown_as_text(page):
    read(page, '<img src=x onerror=alert(1)>\nIngredients\n<script>alert(1)</script> 2 cups flour\n1 "><b>egg\n')
    assert page.locator("#rows b:has-text('egg')").count() == 0
    assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0


def test_a_recipe_that_cannot_be_read_says_why_and_keeps_the_kit(page):
    read(page)
    page.fill("#text", "1 egg\n" * 500)
    page.click("#read")
    page.wait_for_selector("#alert:not([hidden])")
    assert "at most 400" in page.inner_text("#alert")
    assert names(page) == ["2 cups flour", "3 eggs", "1 can tomatoes"]


def picture(color=(200, 30, 30), size=(320, 240), **options):
    from PIL import Image, ImageDraw

    image = Image.new("RGB", size, (240, 240, 235))
    ImageDraw.Draw(image).ellipse((60, 20, 260, 220), fill=color)
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def test_a_photo_is_shown_with_its_foods(page):
    page.set_input_files("#file", {"name": "lunch.jpg", "mimeType": "image/jpeg", "buffer": picture()})
    page.wait_for_selector("#photo:not([hidden])")
    assert page.locator("#foods .guess").count() >= 1
    assert page.locator("#canvas").evaluate("canvas => [canvas.width, canvas.height]") == [320, 240]
    page.locator("#canvas").scroll_into_view_if_needed()
    place = page.locator("#canvas").bounding_box()
    page.mouse.move(place["x"] + place["width"] * 0.2, place["y"] + place["height"] * 0.1)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] * 0.8, place["y"] + place["height"] * 0.9, steps=4)
    page.mouse.up()
    page.wait_for_selector("#unbox:not([hidden])")
    assert "Box 1" in page.inner_text("#foods")


@pytest.mark.parametrize("content", [b"<svg onload=alert(1)>", b"\xff\xd8\xff\xe0 cut off", b""])
def test_a_hostile_file_is_refused_in_words(page, content):
    read(page)
    page.set_input_files("#file", {"name": "lunch.jpg", "mimeType": "image/jpeg", "buffer": content})
    page.wait_for_selector("#alert:not([hidden])")
    assert len(page.inner_text("#alert")) > 20
    assert len(names(page)) == 3  # nothing is lost


def test_the_page_fits_into_400_pixels_and_works_by_keyboard(browser, address):
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.set_default_timeout(WAIT)
    page.goto(address)
    page.focus("#text")
    page.keyboard.insert_text(RECIPE)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rows li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.evaluate("document.activeElement.id") == "kit-title"
    page.close()
