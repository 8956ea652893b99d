"""The catalog on a terminal: all methods, or one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from weightsmith import catalog, claims
from weightsmith.catalog import Command, Method

__all__ = ["describe", "print_method", "print_methods"]


def print_methods(methods: Sequence[Method], *, as_json: bool) -> None:
    """Print the rows of the catalog as a table or as JSON."""
    if as_json:
        print(json.dumps([_row(method) for method in methods], indent=2, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("method", no_wrap=True)
    table.add_column("what it does")
    for column in ("paper's claim", "we declared"):
        table.add_column(column, max_width=15)
    for verb, meaning in catalog.VERBS.items():
        rows = [method for method in methods if method.verb == verb]
        if not rows:
            continue
        table.add_row()
        table.add_row(f"[bold]{verb}[/]", f"[italic]{meaning}[/]")
        for method in rows:
            style = "dim" if method.planned else ""
            table.add_row(f"  {method.slug}", method.summary, *_verdicts(method), style=style)
    Console().print(table)
    ready = sum(not method.planned for method in methods)
    Console().print(f"\n{ready} of {len(methods)} methods are ready. `weightsmith show METHOD` tells more about one.")


def print_method(method: Method, name: str) -> None:
    """Print one row of the catalog, with the defaults of its commands and its measured claims.

    Found by the name of one of several commands, only that command is told.
    """
    commands = method.commands if name not in method.commands or name == method.slug else [name]
    console = Console()
    console.print(f"[bold]{method.slug}[/]  {method.summary}\n")
    console.print(f"[dim]paper  [/]{escape(method.paper)} ({method.year}), {method.url}", highlight=False)
    confirmed, declared = _verdicts(method)
    console.print(f"[dim]claim  [/]{escape(method.claim)}: {declared}")
    console.print(f"[dim]       [/]the paper's claim, at this scale: {confirmed or 'planned'}")
    for entry in method.classes:
        module, _, name = entry.partition(":")
        console.print(f"[dim]python [/]from {module} import {name}", highlight=False)
    if method.package != "weightsmith":
        _print_product(console, method)
    for each in commands:
        _print_command(console, method.commands[each])
    for claim in claims.stored(method.slug):
        _print_claim(console, claim)


def _print_product(console: Console, method: Method) -> None:
    """The commands of a product, which are its package's own; or that it is not installed."""
    from weightsmith.cli.lazy import products

    names = [point.name for point in products() if point.module.partition(".")[0] == method.package]
    for name in names:
        console.print(f"[dim]shell  [/]weightsmith {name} --help", highlight=False)
    if not names:
        console.print(f"[dim]shell  [/]{method.distribution}, a package of its own, is not installed", highlight=False)


def _print_claim(console: Console, claim: Mapping[str, Any]) -> None:
    verdict = "[green]held[/]" if claim["holds"] else "[red]not held[/]"
    if claim["paper_verdict"]:
        verdict += f", the paper's claim at this scale: {claim['paper_verdict']}"
    direction = "higher" if claim["higher_is_better"] else "lower"
    console.print(f"\n[bold]{escape(claim['title'])}[/]: {escape(claim['statement'])} ({verdict})", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column(f"{claim['metric']} ({direction} is better)")
    for arm in claim["arms"]:
        low, high = arm["ci95"]
        table.add_row(f"  {escape(arm['name'])}", f"{arm['mean']:.4g} ± {(high - low) / 2:.2g}")
    console.print(table)


def describe(command: Command) -> dict[str, Any]:
    """Read the usage, description and options of a command from its function, which is imported for it."""
    from typer.main import get_command

    from weightsmith.cli.adaptor import make_command
    from weightsmith.signature import read

    signature = read(catalog.load(command.entry))
    parameters = get_command(make_command(command.name, signature)).params
    others = [role for role in [*signature.networks, *signature.data] if role not in signature.measured]
    return {
        "flags": [flag for parameter in parameters for flag in parameter.opts if flag.startswith("--")],
        "usage": signature.usage,
        "description": signature.description,
        "options": [[role.name, role.kind, role.help] for role in others]
        + [[field.name, str(field.default), field.help] for field in signature.fields.values()],
    }


def _print_command(console: Console, command: Command) -> None:
    written = json.loads(catalog.COMMANDS.read_text("utf-8"))
    told = written[command.name] if command.name in written else describe(command)
    console.print(f"\n[bold]weightsmith {command.verb} {command.name}[/] [dim]{told['usage']}[/]")
    console.print(escape(told["description"]), width=100, highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for option, default, text in told["options"]:
        table.add_row(f"  --{option.replace('_', '-')}", f"[dim]{escape(default)}[/]", escape(text))
    console.print(table)


def _row(method: Method) -> dict[str, object]:
    return {
        "slug": method.slug,
        "verb": method.verb,
        "summary": method.summary,
        "paper": method.paper,
        "year": method.year,
        "reference": method.reference,
        "url": method.url,
        "module": method.module,
        "commands": {name: command.entry for name, command in method.commands.items()},
        "classes": list(method.classes),
        "claim": method.claim,
        "paper_verdict": _verdicts(method)[0],
        "status": _verdicts(method)[1],
    }


def _verdicts(method: Method) -> tuple[str, str]:
    """What its stored experiments say of the paper's claim, and of what we declared; or that it is planned."""
    if method.planned:
        return "", "planned"
    measured = claims.stored(method.slug)
    return claims.paper_verdict(measured), claims.verdict(measured)
