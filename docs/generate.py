"""Write the pages that come from data: the table of methods, the measured claims with pictures, the benchmarks.

Run by ``make docs``. The text between ``<!-- methods -->`` marks in the README is written too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsmith import catalog, claims

DOCS = Path(__file__).parent
ROOT = DOCS.parent
WRITTEN = "<!-- written by docs/generate.py -->\n\n"
COLOURS = {"method": "#c8501e", "baseline": "#2f6db3", "control": "#8a8178"}


def pages() -> dict[Path, str]:
    """Return every generated page: its path and its text."""
    readme = (ROOT / "README.md").read_text("utf-8")
    table = f"<!-- methods -->\n{_ready_table('docs/methods/')}<!-- /methods -->"
    return {
        DOCS / "methods" / "index.md": _methods_page(),
        DOCS / "claims.md": _claims_page(),
        DOCS / "benchmarks.md": _benchmarks_page(),
        ROOT / "README.md": re.sub(r"<!-- methods -->.*<!-- /methods -->", lambda _: table, readme, flags=re.DOTALL),
    }


def write() -> None:
    """Write the pages that differ, and a picture of each claim."""
    for path, text in pages().items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
    for claim in _measured():
        _draw(claim, DOCS / "pictures" / f"claim-{_name(claim)}.png")


def _ready_table(folder: str) -> str:
    rows = ["| method | what it does | paper | claim |", "| --- | --- | --- | --- |"]
    for method in catalog.METHODS:
        if method.planned:
            continue
        also = [f"`{name}`" for name in method.commands if name != method.slug]
        names = f"[{method.slug}]({folder}{method.slug}.md)" + (f" with {', '.join(also)}" if also else "")
        paper = f"[{method.reference}]({method.url})"
        rows.append(
            f"| {names} | {method.summary} | {paper} | {method.claim}: {_verdict(claims.stored(method.slug))} |"
        )
    return "\n".join(rows) + "\n"


def _methods_page() -> str:
    ready = [method.slug for method in catalog.METHODS if not method.planned]
    lines = [
        "# Methods\n",
        f"{len(ready)} of {len(catalog.METHODS)} are ready; the rest are planned and listed so that you know.\n",
        _ready_table(""),
        "```{toctree}\n:hidden:\n\n" + "\n".join(ready) + "\n```\n",
        "## Planned\n",
    ]
    for verb, meaning in catalog.VERBS.items():
        planned = [method for method in catalog.METHODS if method.verb == verb and method.planned]
        if planned:
            lines.append(f"### {verb}: {meaning[0].lower()}{meaning[1:]}\n")
            lines += [f"- **{m.slug}**: {m.summary} ([{m.paper}]({m.url}), {m.year})" for m in planned]
            lines.append("")
    return "\n".join([WRITTEN.strip(), "", *lines])


def _claims_page() -> str:
    lines = [
        WRITTEN.strip(),
        "",
        "# Claims\n",
        "Each claim was declared before it was measured: which arm should beat which, and by how much. Arms share",
        "their seeds, differences are paired by seed, and an ordering holds when the 95 % interval of the paired",
        "difference lies on its right side. The verdict is computed, never written by hand; what does not hold is",
        "shown as such.",
        "",
        "Run them yourself with `weightsmith claims`.\n",
    ]
    for claim in _measured():
        lines += _claim_section(claim)
    return "\n".join(lines).rstrip() + "\n"


def _claim_section(claim: Mapping[str, Any]) -> list[str]:
    unit = f"{claim['metric']}, {'higher' if claim['higher_is_better'] else 'lower'} is better"
    lines = [
        f"## {claim['title']}\n",
        f"**{_verdict([claim]).capitalize()}.** {claim['statement']} ([{claim['slug']}](methods/{claim['slug']}.md))\n",
        f"![{claim['title']}: {unit}](pictures/claim-{_name(claim)}.png)\n",
    ]
    if claim["paper"]:
        lines.append(f"The paper: {claim['paper']}\n")
    lines += ["| expected | by at least | measured, paired | |", "| --- | --- | --- | --- |"]
    for order in claim["expected"]:
        low, high = order["ci95"]
        mark = "holds" if order["holds"] else "**does not hold**"
        margin = f"{order['margin']:.3g}" if order["margin"] else ""
        measured = f"{order['advantage']:.4g} ± {(high - low) / 2:.2g}"
        lines.append(f"| {order['better']} better than {order['worse']} | {margin} | {measured} | {mark} |")
    if claim["notes"]:
        lines += ["", *[f"- {note}" for note in claim["notes"]]]
    machine = claim["versions"]
    lines.append(
        f"\n<small>{len(claim['seeds'])} seeds, {claim['seconds']:.0f} s, scale {claim['scale']}, "
        f"{machine['device']}, torch {machine['torch']}, transformers {machine['transformers']}.</small>\n"
    )
    return lines


def _benchmarks_page() -> str:
    lines = [
        WRITTEN.strip(),
        "",
        "# Benchmarks\n",
        "Both arms run in turn in one process. The ratio says how many times better ours is than the peer; the limit",
        "is what bandwidth or arithmetic allow, measured in the same run. `make bench` runs them.\n",
        "| question | ratio | goal | limit | ours | peer |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((DOCS / "benchmarks").glob("*.json")):
        row = json.loads(path.read_text("utf-8"))
        cells = [_number(row.get(name)) for name in ("ratio", "goal", "limit", "ours", "peer")]
        cells[3:] = [f"{cell} {row['unit']}" if cell else "" for cell in cells[3:]]
        lines.append(f"| {row['benchmark']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else str(value or "")


def _verdict(measured: Sequence[Mapping[str, Any]]) -> str:
    if not measured:
        return "not measured"
    return "holds" if all(claim["holds"] for claim in measured) else "does not hold"


def _measured() -> list[dict[str, Any]]:
    return [claim for method in catalog.METHODS for claim in claims.stored(method.slug)]


def _name(claim: Mapping[str, Any]) -> str:
    return f"{claim['slug']}-{claim['experiment']}" if claim["experiment"] else claim["slug"]


def _draw(claim: Mapping[str, Any], path: Path) -> None:
    """One row an arm: every seed as a dot, the mean with its 95 % interval as a bar."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    arms = claim["arms"]
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.42 * len(arms)), layout="constrained")
    for row, arm in enumerate(arms):
        colour, (low, high) = COLOURS[arm["role"]], arm["ci95"]
        axes.plot([low, high], [row, row], color=colour, linewidth=2.5, alpha=0.6, solid_capstyle="round")
        axes.scatter(arm["values"], [row] * len(arm["values"]), color=colour, s=14, alpha=0.45, linewidth=0)
        axes.scatter(arm["mean"], row, color=colour, s=52, zorder=3)
    axes.set_yticks(range(len(arms)), [f"{arm['name']}  ({arm['role']})" for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel(f"{claim['metric']} ({'higher' if claim['higher_is_better'] else 'lower'} is better)")
    axes.grid(axis="x", color="#e3e0da")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    write()
