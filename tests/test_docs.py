"""The pages run: their Python, their commands, their recipes; what is generated is up to date; links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import typer
from latex2mathml.converter import convert
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from typer.main import get_command

from weightsmith import catalog
from weightsmith.cli import adaptor
from weightsmith.cli.lazy import LazyCommand
from weightsmith.cli.main import app
from weightsmith.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
         *sorted((ROOT / "docs/methods").glob("*.md")), *sorted(ROOT.glob("apps/*/README.md"))]  # fmt: skip
BUILT = ROOT / "docs/_build/html"
sys.path.insert(0, str(ROOT / "docs"))
generate, what_holds = (importlib.import_module(name) for name in ("generate", "what_holds"))


def _name(page):
    return page.stem if page.is_relative_to(ROOT / "docs") else str(page.relative_to(ROOT))


def _blocks(page, language):
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def _with(language):
    return pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page, language)], ids=_name)


@_with("python")
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for example in Document.parse(str(page), SkipParser(), PythonCodeBlockParser()).examples():
        example.evaluate()


COMMANDS = [
    pytest.param(line, id=f"{_name(page)}-{number}")
    for page in PAGES
    for block in _blocks(page, "bash")
    for number, line in enumerate(block.replace("\\\n", " ").splitlines(), 1)
    if line.startswith("weightsmith ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_command_lines_parse(line, monkeypatch):
    for name in ("_transform", "_call", "_measure"):  # what would do the work; the values are validated before it
        monkeypatch.setattr(adaptor, name, lambda *args, **kwargs: None)
    command, context, name = get_command(app), None, "weightsmith"
    _, *words = shlex.split(line, comments=True)
    while hasattr(command, "resolve_command"):
        context = command.make_context(name, words[:1], parent=context)
        name, command, _ = context.command.resolve_command(context, words[:1])  # a product hands over to its own
        words = words[1:]
    with suppress(typer.Exit):  # --help
        made = command.make_context(name, words, parent=context)
        if isinstance(command, LazyCommand) and context.parent is not None:  # a method
            made.command.invoke(made)


@_with("yaml")
def test_recipes_are_valid(page, tmp_path):
    for number, block in enumerate(_blocks(page, "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, "utf-8")
        load_recipe(path)


def test_the_example_recipe_is_valid():
    load_recipe(ROOT / "examples/adapters.yaml")


@pytest.mark.parametrize("path", generate.pages(), ids=lambda path: path.name)
def test_generated_pages_are_up_to_date(path):
    assert path.read_text("utf-8") == generate.pages()[path], "run `python docs/generate.py` and commit what it wrote"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_references_name_public_objects(page):
    for kind, name in re.findall(r"\{py:(\w+)\}`~?([^`]+)`", page.read_text("utf-8")):
        assert "._" not in name, f"{name} is private: the API pages do not have it"
        module, _, attribute = (name, "", "") if kind == "mod" else name.rpartition(".")
        assert not attribute or hasattr(importlib.import_module(module), attribute), f"{name} does not exist"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        if "://" not in target and not target.startswith("gallery/"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_a_claim_is_drawn(tmp_path):
    arm = {"name": "a", "role": "method", "mean": 1.0, "ci95": [0.9, 1.1], "values": [0.95, 1.0, 1.05]}
    generate._draw(
        {"arms": [arm, {**arm, "role": "control"}], "metric": "x", "higher_is_better": True}, tmp_path / "c.png"
    )
    assert (tmp_path / "c.png").stat().st_size > 5_000


def test_every_method_has_a_verdict_on_its_claim():
    rows = what_holds.rows()
    assert [row.slug for row in rows] == [method.slug for method in catalog.METHODS]
    assert {row.verdict for row in rows} == set(what_holds.VERDICTS)


def _row(*, method, baseline, control=None, higher=True, margin=0.0):
    arms = {"m": method, "b": baseline, **({"c": control} if control else {})}
    stored = [{"name": name, "mean": sum(values) / len(values), "values": values} for name, values in arms.items()]
    expected = [{"better": "m", "worse": "b", "margin": margin}]
    claim = {"arms": stored, "higher_is_better": higher, "experiment": "", "slug": "x", "expected": expected}
    roles = {"method": "m", "baseline": "b", **({"control": "c"} if control else {})}
    return what_holds.row("x", roles, [claim])


@pytest.mark.parametrize(
    ("arms", "verdict"),
    [
        ({"method": [3, 3.1], "baseline": [1, 1.1]}, "holds"),
        ({"method": [3, 3.1], "baseline": [1, 1.1], "control": [2, 2.1]}, "holds"),
        ({"method": [3, 3.1], "baseline": [1, 1.1], "control": [3, 3.2]}, "control as good"),
        ({"method": [3, 3.1], "baseline": [1, 1.1], "control": [4, 4.1]}, "control as good"),
        ({"method": [3, 1], "baseline": [1, 3]}, "not resolved"),
        ({"method": [1, 1.1], "baseline": [3, 3.1]}, "does not hold"),
        ({"method": [1, 1.1], "baseline": [3, 3.1], "higher": False}, "holds"),
        ({"method": [1, 1.1], "baseline": [3, 3.1], "higher": False, "margin": 1.9}, "holds"),
        ({"method": [1, 1.1], "baseline": [3, 3.1], "higher": False, "margin": 2.1}, "not resolved"),
        ({"method": [3, 1], "baseline": [1, 3], "margin": -5}, "not resolved"),
    ],
)
def test_verdicts(arms, verdict):
    assert _row(**arms).verdict == verdict


def test_built_pages_load_nothing_from_the_network():
    for page in BUILT.rglob("*.html"):  # none on a fresh clone; `make docs` builds them
        loaded = re.findall(
            r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?((?:https?:)?//[^"'\s>]+)"""
            r"""|<link\b(?=[^>]*rel=["']?(?:stylesheet|preload|icon|preconnect))[^>]*\bhref=["']?((?:https?:)?//[^"'\s>]+)""",
            page.read_text("utf-8"),
        )
        assert not loaded, f"{page.relative_to(BUILT)} loads {loaded}"


def test_the_configuration_loads_nothing_from_the_network():
    text = (ROOT / "docs/conf.py").read_text("utf-8") + (ROOT / "docs/_static/weightsmith.css").read_text("utf-8")
    assert "mathjax" not in text
    assert not re.findall(r"https?://", text)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_formulas_become_mathml(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    for block, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$]+)\$", text, re.DOTALL):
        assert "\\" not in convert(block or inline), f"{block or inline} holds a command that MathML has no sign for"
