"""The page in a real browser: what a reader sees, corrects and takes away, with the mouse and with the keyboard."""

from __future__ import annotations

import csv
import io
import shutil

import pytest
from google.protobuf.json_format import Parse
from phenopackets import Phenopacket

from weightsmith_phenotype.serve import Limits, create_app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the page's tests need the program chromium")
playwright_api = pytest.importorskip("playwright.sync_api", reason="the page's tests need the package playwright")
expect = playwright_api.expect
expect.set_options(timeout=20_000)  # the machine may be busy with other tests

OPTION = "[role=option]"
TEXT = "\N{GRINNING FACE} Seizures and severe short stature, no cleft palate.\nPossible ataxia. Her father's migraine."


@pytest.fixture(scope="module")
def browser():
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(flagging_tagger, insight, serve):
    limits = Limits(max_bytes=1 << 20, rate=100_000)
    with serve(create_app(flagging_tagger, limits=limits, insight=insight)) as address:
        yield address


@pytest.fixture
def open_page(browser, address):
    """Open the page; at the end nothing was asked of another host and nothing failed on the way."""
    contexts, asked, failures = [], [], []

    def open_page(address=address, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("console", lambda message: failures.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: (failures.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.goto(address)
        expect(page.locator("#stamp")).not_to_be_empty()
        page.failures = failures
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked
    assert [url for url in asked if not url.startswith((f"{address}/", f"blob:{address}/", "http://127.0.0.1:"))] == []
    assert failures == []


@pytest.fixture
def page(open_page):
    return open_page()


def tag(page, text=TEXT):
    page.get_by_label("Clinical text").fill(text)
    page.get_by_role("button", name="Find terms").click()
    expect(page.locator("#reading")).to_be_visible()


def shown(page):
    """Text and id of each mention in reading order, with its context."""
    return page.locator("#note .mention").evaluate_all(
        "all => all.map(m => [m.textContent || m.dataset.text, m.dataset.id, m.dataset.flags])"
    )


def exported(page, button):
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=True).click()
    with open(download.value.path(), encoding="utf-8", newline="") as file:
        return download.value.suggested_filename, file.read()


def features(page):
    name, content = exported(page, "Phenopacket")
    assert name == "phenopacket.json"
    packet = Parse(content, Phenopacket())
    return {(feature.type.id, feature.excluded) for feature in packet.phenotypic_features}


def choose(page, field, query, option):
    """Search in a combobox and take an option."""
    box = page.get_by_role("combobox", name=field)
    box.fill(query)
    page.locator(OPTION, has_text=option).first.click()


def select(page, words):
    """Select words of the note as a mouse would."""
    page.evaluate(
        """words => {
            const note = document.getElementById("note"), range = document.createRange();
            const walker = document.createTreeWalker(note, NodeFilter.SHOW_TEXT);
            const start = note.textContent.indexOf(words), end = start + words.length;
            for (let at = 0; walker.nextNode(); at += walker.currentNode.length) {
                const node = walker.currentNode, last = at + node.length;
                if (at <= start && start < last) range.setStart(node, start - at);
                if (at < end && end <= last) range.setEnd(node, end - at);
            }
            getSelection().removeAllRanges();
            getSelection().addRange(range);
        }""",
        words,
    )


def test_mentions_are_shown_in_place(page):
    tag(page)
    assert shown(page) == [
        ["Seizures", "HP:0001250", ""],
        ["severe short stature", "HP:0003510", ""],
        ["short stature", "HP:0004322", ""],  # inside the one before
        ["cleft palate", "HP:0000175", "negated"],
        ["ataxia", "HP:0001251", "uncertain"],
        ["migraine", "HP:0002076", "family"],
    ]
    assert page.locator("#note").evaluate("note => note.textContent") == TEXT
    expect(page.locator("#status")).to_have_text("6 mentions of 6 terms.")
    palate = page.get_by_role("button", name="cleft palate: Cleft palate, HP:0000175, score 1.00, negated")
    label = "mention => getComputedStyle(mention, '::before').content + getComputedStyle(mention, '::after').content"
    assert palate.evaluate(label).startswith('"negated"')
    assert "HP:0000175" in palate.evaluate(label)
    assert "1.00" in palate.evaluate(label)
    seizures = page.locator('.mention[data-id="HP:0001250"]')
    assert "Seizure" in seizures.evaluate(label)  # its name differs from the words of the note
    page.get_by_label("Labels").select_option("none")
    assert palate.evaluate(label) == '"negated"none'  # what is denied stays visible
    groups = page.locator("#terms h3").all_inner_texts()
    assert [group.split() for group in groups] == [
        ["Present", "3"],
        ["Uncertain", "1"],
        ["Negated", "1"],
        ["Of", "a", "relative", "1"],
    ]


def test_a_term_is_shown_with_its_place_and_can_be_followed(page):
    tag(page)
    page.get_by_role("button", name="cleft palate: ").click()
    panel = page.locator("#inspector")
    expect(panel.get_by_role("heading", name="Cleft palate")).to_be_focused()
    expect(panel).to_contain_text("A gap in the roof of the mouth.")
    expect(panel).to_contain_text("Palatoschisis")
    expect(panel).to_contain_text("4 of 6")
    panel.get_by_role("button", name="Orofacial cleft").click()
    expect(panel.get_by_role("heading", name="Orofacial cleft HP:0000202")).to_be_focused()
    panel.get_by_role("button", name="Cleft upper lip").click()
    panel.get_by_role("button", name="Back to Cleft palate").click()
    panel.get_by_role("button", name="Submucous cleft palate").click()
    panel.get_by_role("button", name="Use this term").click()
    expect(panel.get_by_role("heading", name="Submucous cleft palate").first).to_be_focused()
    assert ["cleft palate", "HP:0410031", "negated"] in shown(page)
    panel.get_by_role("button", name="Next mention").click()
    expect(panel.get_by_role("heading", name="Ataxia")).to_be_visible()
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    expect(page.get_by_role("button", name="ataxia: ")).to_be_focused()


def test_mentions_are_corrected_and_exported(page):
    tag(page)
    assert features(page) == {
        ("HP:0001250", False),
        ("HP:0003510", False),
        ("HP:0004322", False),
        ("HP:0000175", True),
    }
    # Change a term, by a synonym.
    page.get_by_role("button", name="Seizures: ").click()
    choose(page, "Change the term", "partial", "Focal-onset seizure")
    expect(page.locator("#status")).to_contain_text("Now: Seizures: Focal-onset seizure")
    # Set and take back contexts.
    page.get_by_role("button", name="cleft palate: ").click()
    page.locator("#inspector").get_by_role("button", name="negated").click()
    page.get_by_role("button", name="ataxia: ").click()
    page.locator("#inspector").get_by_role("button", name="uncertain").click()
    # Remove.
    page.get_by_role("button", name="short stature: Short stature").last.click()
    page.get_by_role("button", name="Remove this mention").click()
    # Add, after an emoji and over words that were no mention.
    select(page, "\nPossible")
    page.locator("#bubble").click()
    expect(page.locator("#inspector .quote")).to_have_text("“Possible”")
    choose(page, "Term", "HP:0001513", "Obesity")
    expect(page.locator("#status")).to_have_text("Added: Possible: Obesity, HP:0001513, score 1.00.")
    page.keyboard.press("Escape")
    assert shown(page) == [
        ["Seizures", "HP:0007359", ""],
        ["severe short stature", "HP:0003510", ""],
        ["cleft palate", "HP:0000175", ""],
        ["Possible", "HP:0001513", ""],
        ["ataxia", "HP:0001251", ""],
        ["migraine", "HP:0002076", "family"],
    ]
    page.get_by_label("Id of the person").fill("P-7")
    assert features(page) == {
        ("HP:0007359", False),
        ("HP:0003510", False),
        ("HP:0000175", False),
        ("HP:0001513", False),
        ("HP:0001251", False),
    }
    name, content = exported(page, "CSV")
    rows = list(csv.DictReader(io.StringIO(content)))
    assert name == "mentions.csv"
    assert [(int(row["start"]), row["text"], row["source"]) for row in rows if row["source"] == "reader"] == [
        (TEXT.index("Seizures"), "Seizures", "reader"),
        (TEXT.index("Possible"), "Possible", "reader"),
    ]
    for _ in range(5):
        page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    assert [row[1] for row in shown(page)] == [
        "HP:0001250",
        "HP:0003510",
        "HP:0004322",
        "HP:0000175",
        "HP:0001251",
        "HP:0002076",
    ]


def test_the_keyboard_is_enough(page):
    press = page.keyboard.press

    def tab_to(locator, key="Tab"):
        for _ in range(40):
            press(key)
            if locator.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"{locator} is not reached")

    tab_to(page.get_by_label("Clinical text"))
    page.keyboard.type("Ataxia, seizures. Wobbly gait. Wobbly again.")
    tab_to(page.get_by_role("button", name="Find terms"))
    press("Enter")
    expect(page.locator("#status")).to_have_text("2 mentions of 2 terms.")
    ataxia = page.get_by_role("button", name="Ataxia: ")
    tab_to(ataxia)
    assert ataxia.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    press("ArrowRight")
    press("n")
    assert shown(page)[1] == ["seizures", "HP:0001250", "negated"]
    expect(page.get_by_role("button", name="seizures: ")).to_be_focused()
    press("Enter")
    panel = page.locator("#inspector")
    expect(panel.get_by_role("heading", name="Seizure")).to_be_focused()
    expect(panel.get_by_role("button", name="negated")).to_have_attribute("aria-pressed", "true")
    tab_to(panel.get_by_role("button", name="negated"))
    press("Space")
    assert shown(page)[1] == ["seizures", "HP:0001250", ""]
    field = panel.get_by_role("combobox", name="Change the term")
    tab_to(field)
    page.keyboard.type("seiz")
    expect(panel.locator(OPTION)).to_have_count(3)
    expect(field).to_have_attribute("aria-expanded", "true")
    press("Escape")  # closes the list, not the panel
    expect(panel.get_by_role("listbox")).to_be_hidden()
    expect(panel).to_be_visible()
    press("ArrowDown")
    expect(panel.get_by_role("listbox")).to_be_visible()
    press("ArrowDown")
    active = field.get_attribute("aria-activedescendant")
    expect(page.locator(f"#{active}")).to_contain_text("Febrile seizure")
    expect(page.locator(f"#{active}")).to_have_attribute("aria-selected", "true")
    press("Enter")
    expect(panel.get_by_role("heading", name="Febrile seizure")).to_be_focused()
    press("Escape")
    expect(page.get_by_role("button", name="seizures: ")).to_be_focused()
    press("Delete")
    expect(ataxia).to_be_focused()
    press("Control+z")
    assert [row[1] for row in shown(page)] == ["HP:0001251", "HP:0002373"]
    tab_to(page.get_by_role("button", name="Add a term"), "Shift+Tab")
    press("Enter")
    expect(panel.get_by_label("Words in the note")).to_be_focused()
    page.keyboard.type("wobbly gate")
    expect(panel).to_contain_text("These words are not in the note.")
    for _ in range(5):
        press("Backspace")
    expect(panel).to_contain_text("In 2 places:")
    tab_to(panel.get_by_label("Place in the note"))
    press("ArrowDown")
    tab_to(panel.get_by_role("combobox", name="Term"))
    press("Control+a")
    page.keyboard.type("atax")
    expect(panel.locator(OPTION)).to_have_count(1)
    press("Enter")
    expect(page.locator("#status")).to_have_text("Added: Wobbly: Ataxia, HP:0001251, score 1.00.")
    assert page.evaluate("document.querySelector('#note').textContent.indexOf('Wobbly again')") == 31
    assert shown(page)[2] == ["Wobbly", "HP:0001251", ""]
    before = page.locator("#note .mention").last.evaluate("mention => mention.previousSibling.textContent")
    assert before == ". Wobbly gait. "
    press("Escape")
    tab_to(page.get_by_role("button", name="Phenopacket"))
    with page.expect_download():
        press("Enter")


HOSTILE = {
    "markup": "<img src=x onerror=alert(1)><script>alert(2)</script> ataxia \"'><b>bold</b> &lt;",
    "directions": "\u202eaixata\u202c ataxia \u2066x\u2069",
    "controls": "a\x00b\x07 ataxia \x7f",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_is_shown_and_harmless(page, kind):
    text = HOSTILE[kind]
    tags = page.evaluate("document.querySelectorAll('img, script, b, iframe').length")
    page.locator("#file").set_input_files({"name": "note.txt", "mimeType": "text/plain", "buffer": text.encode()})
    expect(page.locator("#reading")).to_be_visible()
    assert shown(page) == [["ataxia", "HP:0001251", ""]]
    content = page.locator("#note").evaluate("note => note.textContent")
    assert len(content) == len(text)
    assert not set(content) & set("\x00\x07\x7f\u202e\u202c\u2066\u2069")
    if kind == "markup":
        assert content == text
        expect(page.locator("#unseen")).to_be_hidden()
    else:
        expect(page.locator("#unseen")).to_contain_text("control characters of the text are shown as \ufffd.")
    assert page.evaluate("document.querySelectorAll('img, script, b, iframe').length") == tags
    start = int(page.evaluate("document.querySelector('#note .mention').previousSibling.textContent.length"))
    assert start == text.index("ataxia")
    assert features(page) == {("HP:0001251", False)}


def test_hostile_names_of_an_ontology_are_text(open_page, flagging_tagger, serve):
    from weightsmith_phenotype import Ontology, Synonym, Term

    name = "<img src=x onerror=alert(1)>tall"
    term = Term("X:2", name, name, [Synonym("tall"), Synonym(name + "!")], ["X:1"])
    tagger = type(flagging_tagger)(Ontology([Term("X:1", name), term], root="X:1", name=name))
    with serve(create_app(tagger)) as address:
        page = open_page(address)
        tag(page, "tall")
        page.get_by_role("button", name="tall: ").click()
        expect(page.locator("#inspector .definition")).to_have_text(name)
        page.get_by_role("combobox", name="Change the term").fill("tall")
        expect(page.locator(OPTION).first).to_contain_text(name)
        assert page.locator("img").count() == 0
        expect(page.locator("#insight")).to_be_hidden()  # nothing is known of genes for such an ontology


def test_a_megabyte_of_one_letter(page):
    file = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"a" * 1_000_000}
    page.locator("#file").set_input_files(file)
    expect(page.locator("#terms")).to_contain_text("No term found in this text.")
    assert page.locator("#note").evaluate("note => note.textContent.length") == 1_000_000
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Edit the text").click()
    page.evaluate("document.getElementById('text').value = 'a'.repeat(2 ** 20 + 1)")
    page.get_by_role("button", name="Find terms").click()
    expect(page.get_by_role("alert")).to_contain_text("The text has 1,048,577 bytes, more than the 1,048,576")


def test_a_narrow_screen_needs_no_sideways_scrolling(open_page):
    page = open_page(viewport={"width": 400, "height": 800})

    def fits():
        return page.evaluate("document.documentElement.scrollWidth") <= 400

    assert fits()
    tag(page, TEXT + " " + "Pneumonoultramicroscopic" * 30)
    assert fits()
    palate = page.get_by_role("button", name="cleft palate: ")
    palate.click()
    expect(page.locator("#inspector .definition")).to_be_visible()
    assert fits()
    sheet = page.locator("#inspector").bounding_box()
    mention = palate.bounding_box()
    assert sheet["x"] == 0
    assert sheet["y"] + sheet["height"] == pytest.approx(800, abs=1)
    assert 0 <= mention["y"] < sheet["y"]  # the sheet does not hide the mention
    page.get_by_role("combobox", name="Change the term").fill("cleft")
    expect(page.locator(OPTION).first).to_be_visible()
    assert fits()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Rank genes and diseases").click()
    expect(page.get_by_role("table", name="Diseases")).to_be_visible()
    assert fits()


def test_genes_and_diseases_follow_the_corrections(page):
    tag(page, "Cleft palate, fits, no obesity. Her father's ataxia. Possible ptosis.")
    page.get_by_role("button", name="Rank genes and diseases").click()
    diseases = page.get_by_role("table", name="Diseases")
    expect(diseases.locator("tbody tr")).to_have_count(1)
    expect(diseases).to_contain_text("Palate and seizure syndrome OMIM:100001")
    expect(diseases).to_contain_text("2 of 2")
    expect(page.get_by_role("table", name="Genes")).to_contain_text("PALA NCBIGene:11")
    expect(page.locator("#insight-status")).to_have_text("Ranked by 2 terms, HPO annotations of 2030-01-02.")
    page.get_by_label("use uncertain terms too").check()
    expect(diseases.locator("tbody tr")).to_have_count(2)
    growth = diseases.locator("tr", has_text="Growth syndrome")
    expect(growth).to_contain_text("1 conflict")
    growth.locator("summary").click()
    expect(growth).to_contain_text("Annotated with, but negated in the note")
    expect(growth.locator("dd").last).to_have_text("Obesity")
    page.get_by_role("button", name="Cleft palate: ").press("n")
    page.get_by_role("button", name="fits: ").press("f")
    page.get_by_role("button", name="ptosis: ").press("Delete")
    expect(page.locator("#insight-status")).to_contain_text("No term is left to rank by")
    expect(diseases).to_have_count(0)


def test_a_ranking_waits_for_the_annotations(open_page, flagging_tagger, annotations, serve):
    from weightsmith_phenotype.serve import Insight

    late = Insight(annotations)
    start, late.start = late.start, lambda: None  # as if reading took long
    with serve(create_app(flagging_tagger, insight=late)) as address:
        page = open_page(address)
        tag(page)
        page.get_by_role("button", name="Rank genes and diseases").click()
        expect(page.locator("#insight-status")).to_contain_text("being read; the ranking follows by itself")
        start()
        expect(page.get_by_role("table", name="Genes")).to_be_visible()


def test_what_is_wrong_is_said(page):
    alert = page.get_by_role("alert")
    page.get_by_role("button", name="Find terms").click()
    expect(alert).to_contain_text("There is no text yet.")
    file = {"mimeType": "text/plain", "buffer": b"ataxia"}
    page.locator("#file").set_input_files({"name": "note.pdf", **file})
    expect(alert).to_contain_text("note.pdf is not a .txt or .md file.")
    page.locator("#file").set_input_files({"name": "note.md", **file, "buffer": b"x" * ((1 << 20) + 1)})
    expect(alert).to_contain_text("The text has 1,048,577 bytes")
    page.locator("#file").set_input_files({"name": "note.md", **file})
    expect(page.locator("#reading")).to_be_visible()
    expect(alert).to_be_hidden()
    page.get_by_role("button", name="Edit the text").click()
    page.route("**/api/tag", lambda route: route.abort())
    page.get_by_role("button", name="Find terms").click()
    expect(alert).to_contain_text("The server does not answer.")
    expect(page.get_by_role("button", name="Find terms")).to_be_enabled()
    page.get_by_role("button", name="Back to the terms").click()
    assert shown(page) == [["ataxia", "HP:0001251", ""]]
    page.failures.clear()  # the browser reports the request that was cut


def test_the_page_is_busy_while_a_text_is_tagged(page):
    held = []
    page.route("**/api/tag", lambda route: held.append(route))
    page.get_by_role("button", name="Example note").click()
    expect(page.get_by_role("button", name="Finding terms")).to_be_disabled()
    expect(page.locator("#status")).to_have_text("Finding terms …")
    held[0].continue_()
    expect(page.locator("#reading")).to_be_visible()


def test_leaving_asks_while_corrections_are_in_no_file(page):
    tag(page)
    asked = []
    page.on("dialog", lambda dialog: asked.append(dialog.type))
    page.get_by_role("button", name="ataxia: ").press("u")
    page.evaluate("setTimeout(() => location.reload(), 0)")
    expect(page.locator("#reading")).to_be_visible()
    page.wait_for_timeout(200)
    assert asked == ["beforeunload"]
    page.failures.clear()
    features(page)
    page.reload()
    expect(page.locator("#entry")).to_be_visible()
    assert asked == ["beforeunload"]


def test_editing_says_what_it_replaces(page):
    tag(page)
    page.get_by_role("button", name="ataxia: ").press("u")
    page.get_by_role("button", name="Edit the text").click()
    expect(page.locator("#hint")).to_have_text("Finding terms again replaces your 1 correction.")
    expect(page.get_by_label("Clinical text")).to_have_value(TEXT)


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const color = (css, below) => {
        canvas.fillStyle = below; canvas.fillRect(0, 0, 1, 1);
        canvas.fillStyle = css; canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data;
        return `rgb(${r} ${g} ${b})`;
    };
    const light = css => {
        const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = css.match(/[0-9]+/g).map(v => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (one, two) => {
        const [low, high] = [light(one), light(two)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    const behind = element =>
        element ? color(getComputedStyle(element).backgroundColor, behind(element.parentElement)) : "rgb(255 255 255)";
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        if (!element.checkVisibility() || element.closest(":disabled, [hidden], .hidden, .skip, option")) continue;
        const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        const ground = behind(element);
        for (const part of [own ? null : undefined, "::before", "::after", "::placeholder"]) {
            if (part === undefined) continue;
            const style = getComputedStyle(element, part);
            if (part && part !== "::placeholder" && ["none", "normal", '""'].includes(style.content)) continue;
            if (part === "::placeholder" && !element.placeholder) continue;
            const name = `${element.tagName}.${element.className}${part ?? ""}`;
            found.push([ratio(color(style.color, ground), ground), name]);
        }
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(open_page, scheme):
    page = open_page(color_scheme=scheme)

    def least():
        found = page.evaluate(CONTRAST)
        assert len(found) > 10
        return min(found, key=lambda pair: pair[0])

    assert least()[0] >= 4.5, least()
    tag(page)
    page.get_by_role("button", name="Rank genes and diseases").click()
    expect(page.get_by_role("table", name="Diseases")).to_be_visible()
    page.get_by_role("table", name="Diseases").locator("summary").first.click()
    assert least()[0] >= 4.5, least()
    page.get_by_role("button", name="cleft palate: ").click()
    for flag in ("uncertain", "family"):
        page.locator("#inspector").get_by_role("button", name=flag).click()
    page.get_by_role("combobox", name="Change the term").fill("cleft")
    expect(page.locator(OPTION).first).to_be_visible()
    assert least()[0] >= 4.5, least()


def test_the_example_with_the_human_phenotype_ontology(open_page, hpo_names, serve):
    with serve(create_app(hpo_names)) as address:
        page = open_page(address)
        page.get_by_role("button", name="Example note").click()
        page.get_by_role("button", name="aortic root dilatation: Aortic root aneurysm, HP:0002616").click()
        expect(page.locator("#inspector .definition")).to_contain_text("aortic root")
        found = {row[1] for row in shown(page)}
        assert {"HP:0000098", "HP:0001166", "HP:0002650", "HP:0001083", "HP:0001634", "HP:0000175"} <= found
        page.get_by_role("combobox", name="Change the term").fill("aneurysm of ascending")
        expect(page.locator(OPTION).first).to_contain_text("Ascending")
        expect(page.locator("#stamp")).to_contain_text("18,386 terms")
