"""The table of all methods: what each does, the paper it comes from, how to call it, what its claim is.

The command line, the recipe, the docs and the tests are driven by ``catalog.toml`` beside this file. Importing this
module loads no heavy dependency: a method's code is named by text and imported when it is used, and a command's one
line of help is the first line of its docstring, read from the source.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from weightsmith.core.errors import WeightsmithError

__all__ = ["METHODS", "VERBS", "Command", "Method", "commands", "find", "load", "plain"]

PACKAGE = Path(__file__).parent
COMMANDS = PACKAGE / "commands.json"
"""Usage, description and options of every command, written by ``docs/generate.py``."""


@dataclass(frozen=True)
class Command:
    """A function that the command line and recipes offer.

    Attributes
    ----------
    entry : str
        ``"module:function"``, the module being a package with public names.

    Examples
    --------
    >>> command = Command("weightsmith.sparsify:wanda")
    >>> command.name, command.verb, command.summary
    ('wanda', 'sparsify', 'Set the weights with the smallest product of magnitude and input norm to zero (Wanda)')
    """

    entry: str

    @property
    def name(self) -> str:
        """The name on the command line and in recipes: the function's, with dashes."""
        return self.entry.partition(":")[2].replace("_", "-")

    @property
    def verb(self) -> str:
        """The verb it is called under: the folder it is defined in."""
        return self.entry.partition(":")[0].split(".")[1]

    @cached_property
    def summary(self) -> str:
        """The first line of the function's docstring, without its full stop."""
        module, _, name = self.entry.partition(":")
        return _first_line(PACKAGE.joinpath(*module.split(".")[1:]), name)


@dataclass(frozen=True)
class Method:
    """One row of the catalog: one paper.

    Attributes
    ----------
    slug : str
        Short name; also names the file, the docs page and the claim.
    verb : str
        The folder it is defined in, one of :data:`VERBS`.
    summary : str
        What it does for the user, one line.
    paper : str
        Title of the paper.
    year : int
        Year of the first public version.
    reference : str
        ``arXiv:`` id.
    claim : str
        What its claim experiment is about, one line.
    commands : mapping of str to Command
        The functions by the name they are called on the command line and in recipes.
    classes : sequence of str
        What it offers in Python beside them, ``"module:name"``: optimizers, losses, adapters, estimators. A method
        without commands and classes is planned.
    aliases : sequence of str
        Other names it is found by, such as the paper's own.
    package : str
        What it is imported from: a product beside weightsmith is a package of its own, which may not be installed.
    """

    slug: str
    verb: str
    summary: str
    paper: str
    year: int
    reference: str
    claim: str
    commands: Mapping[str, Command] = field(default_factory=dict)
    classes: Sequence[str] = ()
    aliases: Sequence[str] = ()
    package: str = "weightsmith"

    @property
    def planned(self) -> bool:
        """Whether there is no code yet."""
        return not self.commands and not self.classes

    @property
    def installed(self) -> bool:
        """Whether its package can be imported: products beside weightsmith are installed separately."""
        return importlib.util.find_spec(self.package) is not None

    @property
    def distribution(self) -> str:
        """What pip calls its package."""
        return self.package.replace("_", "-")

    @property
    def module(self) -> str:
        """The module that defines it."""
        own = self.package == "weightsmith"
        return f"weightsmith.{self.verb}._{self.slug.replace('-', '_')}" if own else self.package

    @property
    def claim_module(self) -> str:
        """The module whose ``run`` is the claim's experiment."""
        return f"{self.package}.claims.{self.slug.replace('-', '_')}"

    @property
    def url(self) -> str:
        """The paper's address."""
        return f"https://arxiv.org/abs/{self.reference.removeprefix('arXiv:')}"


def commands(verb: str | None = None) -> dict[str, Method]:
    """Return every command that can be run, by name, of one verb or of all.

    Examples
    --------
    >>> sorted(commands("predict"))
    ['d2nwg', 'd2nwg-layers', 'know']
    """
    return {name: m for m in METHODS for name, command in m.commands.items() if verb in (None, command.verb)}


def find(name: str) -> Method:
    """Return the method with this slug, alias or command.

    Raises
    ------
    WeightsmithError
        If there is none; the message names the nearest.

    Examples
    --------
    >>> find("wanda").slug, find("sdl").slug
    ('dsnot', 'supervised')
    """
    rows = {**commands(), **{name: method for method in METHODS for name in (*method.aliases, method.slug)}}
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1)
        do = f"Did you mean {near[0]!r}?" if near else "`weightsmith methods` lists them."
        raise WeightsmithError(f"no method {name!r}", do=do)
    return rows[name]


def load(entry: str) -> Callable[..., Any]:
    """Import ``"module:function"``.

    Examples
    --------
    >>> load("weightsmith.catalog:find") is find
    True
    """
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def plain(text: str) -> str:
    """Docstring markup as words on one line.

    Examples
    --------
    >>> plain("See :func:`~torch.nn.Linear`  and ``x``.")
    'See torch.nn.Linear and x.'
    """
    text = re.sub(r":[\w:]+:`~?([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", " ".join(text.split()))
    return text.replace("``", "").replace("`", "")


def _read() -> tuple[dict[str, str], tuple[Method, ...]]:
    """The verbs and the rows of ``catalog.toml``."""
    table = tomllib.loads((PACKAGE / "catalog.toml").read_text("utf-8"))
    return table["verbs"], tuple(_row(slug, **row) for slug, row in table["methods"].items())


def _row(slug: str, *, verb: str, commands: Sequence[str] = (), classes: Sequence[str] = (), **row: Any) -> Method:
    def entry(name: str) -> str:
        if "package" in row:
            return f"{row['package']}:{name}"
        other, _, own = name.rpartition(".")
        return f"weightsmith.{other or verb}:{own}"

    made = [Command(entry(name)) for name in commands]
    return Method(slug, verb, **row, commands={c.name: c for c in made}, classes=[entry(name) for name in classes])


def _first_line(package: Path, name: str) -> str:
    """The first line of the docstring of a package's public function, found through its stub."""
    stub = package / "__init__.pyi"
    while stub.is_file():
        homes = [n for n in _parse(stub).body if isinstance(n, ast.ImportFrom)]
        home = next(n.module or "" for n in homes if name in {alias.name for alias in n.names})
        package = package.joinpath(*home.split("."))
        stub = package / "__init__.pyi"
    file = package.with_suffix(".py") if package.with_suffix(".py").is_file() else package / "__init__.py"
    tree = _parse(file)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
            return plain(paragraph).removesuffix(".")
    for node in tree.body:  # a package that passes a submodule's name on
        if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
            return _first_line(PACKAGE.joinpath(*node.module.split(".")[1:]), name)
    raise WeightsmithError(f"no function {name!r} in {file}")


@cache
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


VERBS, METHODS = _read()
