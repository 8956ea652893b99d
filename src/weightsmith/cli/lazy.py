"""Verbs whose commands are listed from the catalog and imported only when one of them runs."""

from __future__ import annotations

import inspect
import json
from importlib.metadata import EntryPoints, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from weightsmith import catalog

__all__ = ["LazyCommand", "Product", "Root", "Verb", "hush_transformers", "products"]

DEMO = catalog.Command("weightsmith.cli.demo:run")


def hush_transformers() -> None:
    """Turn off the loading bars of transformers and the retries log of the hub; ours say what matters."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()


class LazyCommand(TyperCommand):
    """A command known by its name and summary; the method behind it is imported when it is called."""

    def __init__(self, name: str, command: catalog.Command, panel: str | None = None) -> None:
        super().__init__(name, help=command.summary, rich_help_panel=panel)
        self.entry = command.entry

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Import the method and hand over to the command made from it; a shell's completion needs only its flags."""
        if extra.get("resilient_parsing"):
            return _only_flags(self.name or "").make_context(info_name, args, parent=parent, **extra)
        from weightsmith.cli.adaptor import make_command
        from weightsmith.signature import read

        hush_transformers()
        made = get_command(make_command(info_name or "", read(catalog.load(self.entry))))
        return made.make_context(info_name, args, parent=parent, **extra)


def _only_flags(name: str) -> Any:
    """A command that takes the flags which ``commands.json`` lists, and does nothing."""

    def command(**given: str) -> None: ...

    flags = json.loads(catalog.COMMANDS.read_text("utf-8")).get(name, {"flags": []})["flags"]
    options = [typer.Option(flag) for flag in flags]
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                f"option{n}", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[str, option], default=""
            )
            for n, option in enumerate(options)
        ]
    )
    command.__annotations__ = {f"option{n}": Annotated[str, option] for n, option in enumerate(options)}
    app = typer.Typer(add_completion=False)
    app.command(name)(command)
    return get_command(app)


class Verb(TyperGroup):
    """A group with one lazy command for each function the catalog has under the verb of the group's name."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, method in catalog.commands(self.name).items():
            self.commands[name] = LazyCommand(name, method.commands[name])


def products() -> EntryPoints:
    """The installed packages that add a group of commands: each names its Typer app in this entry-point group."""
    return entry_points(group="weightsmith.apps")


class Product(TyperGroup):
    """The commands of another package, imported when one of them is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Import the package and hand over to its app."""
        made = get_command(products()[self.name or ""].load())
        return made.make_context(info_name, args, parent=parent, **extra)


class Root(TyperGroup):
    """The top of the tree: the given commands and the demo."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        panel = next(command.rich_help_panel for command in self.commands.values())  # type: ignore[attr-defined]
        self.commands["demo"] = LazyCommand("demo", DEMO, panel)
