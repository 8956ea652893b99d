"""The catalog's promises: every row is complete, and what is not planned is there, documented, claimed and tested."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from weightsmith.catalog import METHODS, VERBS, commands, find, load, plain
from weightsmith.core.errors import WeightsmithError

ROOT = Path(__file__).parent.parent
READY = [method for method in METHODS if not method.planned]
by_slug = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.slug)
ready = pytest.mark.parametrize("method", READY, ids=lambda method: method.slug)


def test_there_are_38_papers():
    assert len({method.slug for method in METHODS}) == 38
    assert len({method.reference for method in METHODS}) == 38
    names = [name for method in METHODS for name in (method.slug, *method.aliases)]
    assert len(names) == len(set(names))


@by_slug
def test_row_is_complete(method):
    assert method.verb in VERBS
    arxiv = re.fullmatch(r"arXiv:(\d\d)(\d\d)\.\d{4,5}", method.reference)
    assert arxiv
    assert method.year == 2000 + int(arxiv[1]), "the year of the first version, as the id says"
    assert 1 <= int(arxiv[2]) <= 12
    for text in (method.summary, method.claim, method.paper):
        assert 15 < len(text) < 130
        assert text == text.strip()
        assert not text.endswith(".")


def test_command_names_are_unique():
    names = [name for method in METHODS for name in method.commands]
    assert len(names) == len(set(names)) == len(commands())


def test_importing_the_catalog_loads_nothing_heavy():
    heavy = "{'torch', 'numpy', 'scipy', 'transformers', 'rich', 'pydantic'}"
    code = f"import sys, weightsmith.catalog; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_unknown_name_says_the_nearest():
    with pytest.raises(WeightsmithError, match=r"no method 'dsnott'. Did you mean 'dsnot'\?"):
        find("dsnott")


@ready
def test_every_command_is_a_documented_typed_function(method):
    for name, command in method.commands.items():
        assert command.entry.startswith("weightsmith.")
        assert command.verb in VERBS
        assert 15 < len(command.summary) < 110
        function = load(command.entry)
        assert command.summary == plain(inspect.getdoc(function).split("\n\n")[0]).removesuffix(".")
        assert inspect.getdoc(function), f"{name} has no docstring"
        for parameter in inspect.signature(function).parameters.values():
            assert parameter.annotation is not parameter.empty, f"{name}'s {parameter.name} has no type"
            assert re.search(
                rf"^\s*(\w+, )*(\*\*)?{parameter.name}(, \w+)*( : .*)?$", function.__doc__, re.MULTILINE
            ), f"{name}'s {parameter.name} is not described under Parameters"


@ready
def test_every_class_is_there_and_documented(method):
    for entry in method.classes:
        assert inspect.getdoc(load(entry)), f"{entry} has no docstring"


@ready
def test_docs_page_exists_and_cites_the_paper(method):
    page = (ROOT / "docs" / "methods" / f"{method.slug}.md").read_text(encoding="utf-8")
    assert method.reference.removeprefix("arXiv:") in page


@ready
def test_claim_exists(method):
    claim = importlib.import_module(method.claim_module)
    assert list(inspect.signature(claim.run).parameters) == ["scale", "seeds"]


@ready
def test_tests_exist(method):
    if method.verb == "apps":
        assert [*ROOT.glob(f"apps/*/src/{method.package}"), *ROOT.glob("apps/*/tests/test_*.py")]
        return
    name = method.module.rpartition(".")[2].lstrip("_")
    folder = ROOT / "tests" / method.verb
    assert [*folder.glob(f"test_{name}*.py"), *folder.glob(f"{name}/test_*.py")]


@pytest.mark.parametrize("file", ["README.md", "docs/index.md", "pyproject.toml"])
def test_nothing_is_promised_that_does_not_work(file):
    """The first lines of a page, and the package's description, name no verb of which every method is planned."""
    promised = "\n".join((ROOT / file).read_text("utf-8").splitlines()[:10])
    for verb in VERBS.keys() - {method.verb for method in READY}:
        assert not re.search(rf"\b{verb}\b", promised), verb
