"""Write what comes from data: pages on the methods, the measured claims with pictures, the benchmarks; commands.json.

Run by ``make docs``. So is the text between ``<!-- methods -->`` marks in the README and on the first page.
"""

from __future__ import annotations

import ast
import json
import math
import re
import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import large_models
import what_holds

from weightsmith import catalog, claims
from weightsmith.cli import tables

DOCS = Path(__file__).parent
ROOT = DOCS.parent
WRITTEN = "<!-- written by docs/generate.py -->\n\n"
COLORS = {"method": "#c8501e", "baseline": "#2f6db3", "control": "#8a8178"}


def pages() -> dict[Path, str]:
    """Return every generated page: its path and its text."""
    return {
        DOCS / "methods" / "index.md": _methods_page(),
        DOCS / "what-holds.md": what_holds.page(),
        DOCS / "large-models.md": large_models.page(),
        DOCS / "claims.md": _claims_page(),
        DOCS / "benchmarks.md": _benchmarks_page(),
        DOCS / "which-one.md": _which_page(_which()),
        DOCS / "index.md": _between_marks(DOCS / "index.md", _verbs()),
        ROOT / "README.md": _between_marks(ROOT / "README.md", _ready_table("docs/methods/")),
        catalog.COMMANDS: _commands(),
    }


def _commands() -> str:
    """What ``weightsmith show`` and the completion of shells tell of every command, without importing one."""
    told = {name: tables.describe(method.commands[name]) for name, method in catalog.commands().items()}
    lines = [f"{json.dumps(name)}: {json.dumps(command, ensure_ascii=False)}" for name, command in told.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _between_marks(path: Path, text: str) -> str:
    """A page with what stands between its ``<!-- methods -->`` marks replaced."""
    marks = r"(<!-- methods -->\n).*(<!-- /methods -->)"
    return re.sub(marks, lambda found: found[1] + text + found[2], path.read_text("utf-8"), flags=re.DOTALL)


def write() -> None:
    """Write the pages that differ, and a picture of each claim."""
    for path, text in pages().items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
    for claim in _measured():
        _draw(claim, DOCS / "pictures" / f"claim-{_name(claim)}.png")
    _draw_which(_which(), DOCS / "pictures" / "which-one.png")
    what_holds.draw(DOCS / "pictures" / "what-holds.png")


def _by_verb(*, planned: bool) -> dict[str, list[catalog.Method]]:
    """The methods of each verb that has any."""
    rows = {verb: [m for m in catalog.METHODS if m.verb == verb and m.planned == planned] for verb in catalog.VERBS}
    return {verb: methods for verb, methods in rows.items() if methods}


def _meaning(verb: str) -> str:
    meaning = catalog.VERBS[verb]
    return f"{verb}: {meaning[0].lower()}{meaning[1:]}"


def _verbs() -> str:
    """One row per verb, with its notebook and the methods that are ready."""
    rows = ["| verb | what you want | methods |", "| --- | --- | --- |"]
    for verb, methods in _by_verb(planned=False).items():
        links = ", ".join(f"[{method.slug}](methods/{method.slug}.md)" for method in methods)
        name = f"[`{verb}`](gallery/verbs/plot_{verb})" if verb != "apps" else f"`{verb}`"
        rows.append(f"| {name} | {catalog.VERBS[verb]} | {links} |")
    return "\n".join(rows) + "\n"


def _ready_table(folder: str, verb: str | None = None) -> str:
    """One row per method that is ready, of one verb or of all."""
    rows = [
        "| method | what it does | the paper's claim, at this scale | what we declared, and whether it held |",
        "| --- | --- | --- | --- |",
    ]
    for method in catalog.METHODS:
        if method.planned or verb not in (None, method.verb):
            continue
        also = [f"`{name}`" for name in method.commands if name != method.slug]
        names = f"[{method.slug}]({folder}{method.slug}.md)" + (f" with {', '.join(also)}" if also else "")
        paper = f"[{method.reference}]({method.url})"
        measured = claims.stored(method.slug)
        verdict, confirmed = claims.verdict(measured), claims.paper_verdict(measured)
        rows.append(f"| {names} | {method.summary} ({paper}) | {confirmed} | {method.claim}: {verdict} |")
    return "\n".join(rows) + "\n"


def _methods_page() -> str:
    ready, planned = _by_verb(planned=False), _by_verb(planned=True)
    count = sum(map(len, ready.values()))
    listed = "; the planned ones are listed below" if planned else ""
    lines = [
        WRITTEN.strip(),
        "",
        "# Methods\n",
        f"{count} of {len(catalog.METHODS)} methods are ready{listed}.\n",
    ]
    for verb, methods in ready.items():
        lines += [f"## {_meaning(verb)}\n", _ready_table("", verb)]
        lines += [f"```{{toctree}}\n:hidden:\n:caption: {verb}\n", *[method.slug for method in methods], "```\n"]
    lines += ["## Planned\n"] if planned else []
    for verb, methods in planned.items():
        lines += [f"### {_meaning(verb)}\n"]
        lines += [f"- **{m.slug}**: {m.summary} ([{m.paper}]({m.url}), {m.year})" for m in methods]
        lines.append("")
    return "\n".join(lines)


def _claims_page() -> str:
    lines = [
        WRITTEN.strip(),
        "",
        "# Claims\n",
        "Each claim was declared before it was measured: which arm should beat which other, and by how much. Arms",
        "share their seeds, differences are paired by seed, and an ordering holds when the 95 % interval of the paired",
        "difference lies on its right side. The verdict is computed, never written by hand; what does not hold is",
        "shown as such.",
        "",
        "There are two verdicts. *What we declared* is our own expectation, with its control arms; it may be that the",
        "paper's method does not win. *The paper's claim, at this scale* is what the paper says, measured on the same",
        "arms: confirmed, a tie, or not confirmed. The scale is that of a laptop; a larger one may differ.",
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
        f"What we declared: **{claims.verdict([claim])}.** {claim['statement']} "
        f"([{claim['slug']}](methods/{claim['slug']}.md))\n",
        f"![{claim['title']}: {unit}](pictures/claim-{_name(claim)}.png)\n",
    ]
    if claim["paper"]:
        verdict = f" At this scale: **{claim['paper_verdict']}**." if claim["paper_verdict"] else ""
        lines.append(f"The paper: {claim['paper'].rstrip('.')}.{verdict}\n")
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
    about = tomllib.loads((DOCS / "benchmarks.toml").read_text("utf-8"))
    lines = [
        WRITTEN.strip(),
        "",
        "# Benchmarks\n",
        "Each row is one script of `benchmarks/`; `make bench` runs them all. Ours and the peer run in turn in one",
        "process. The ratio says how many times better ours is; the limit is the ratio that memory bandwidth, the",
        "matrix-multiply rate or the unavoidable work would allow, measured in the same run. The machines are virtual",
        "ones with two cores that other programs shared, so small differences mean nothing.",
    ]
    for verb in catalog.VERBS:
        rows = [
            _benchmark_row(path, about[path.stem])
            for path in sorted((DOCS / "benchmarks").glob("*.json"))
            if catalog.find(about[path.stem]["method"]).verb == verb
        ]
        if rows:
            lines += [f"\n## {_meaning(verb)}\n"]
            lines += [
                "| question | ours | peer | ratio | limit | machine |",
                "| --- | --- | --- | --- | --- | --- |",
                *rows,
            ]
    return "\n".join(lines) + "\n"


def _benchmark_row(path: Path, about: Mapping[str, Any]) -> str:
    row = json.loads(path.read_text("utf-8"))
    question = about.get("question") or _question(path.stem)
    ours, peer = (f"{about[arm]}: {_number(row[arm])} {about['unit']}" for arm in ("ours", "peer"))
    goal = f", goal at least {row['goal']:g}" if row["goal"] else ""
    limit = f"{_number(row['limit'])} {about['unit'] if about.get('limit_is_measure') else ''}" if row["limit"] else ""
    threads = row["machine"]["threads"]
    machine = f"{large_models.processor(row['machine'])}, {threads} thread{'s'[: threads - 1]}"
    method = f"[{about['method']}](methods/{about['method']}.md)"
    return f"| {question} ({method}) | {ours} | {peer} | {_number(row['ratio'])}{goal} | {limit.strip()} | {machine} |"


def _question(name: str) -> str:
    """The first line of the benchmark script's docstring."""
    script = ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text("utf-8"))
    return (ast.get_docstring(script) or "").split("\n\n")[0].replace("\n", " ")


def _which() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((DOCS / "comparisons" / "which-one.json").read_text("utf-8"))
    return stored


def _which_page(stored: Mapping[str, Any]) -> str:
    start = stored["start"]
    lines = [
        WRITTEN.strip(),
        "",
        "# Which one do I need?\n",
        "| you want | take |",
        "| --- | --- |",
        "| the best loss on the new task, and the old one does not matter | full fine-tuning |",
        "| a small file that many copies of one base model share | LoRA at a tuned rate; [bone](methods/bone.md) where "
        "the learning rate will not be tuned; its additive form where memory is short |",
        "| an ordinary model, no adapter, but optimizer state as small as LoRA's | [lift](methods/lift.md) |",
        "| to know which matrices are well conditioned | [kappatune](methods/kappatune.md); do not expect it to forget "
        "less |",
        "| to ask what sparse pre-training would save | [spdf](methods/spdf.md) |",
        "| a small model that learns from a large one | [pld](methods/pld.md) |",
        "| to train on text with much boilerplate | [loss reweighting](methods/loss-reweighting.md), and try a higher "
        "learning rate first |",
        "| to train on labels that may be wrong, and to find the wrong ones | [meta rescaling]"
        "(methods/meta-rescaling.md) |",
        "| a network that survives the loss of weights | [weight compander](methods/weight-compander.md) |",
        "",
        "## All on one task\n",
        "A byte-level GPT of 170 thousand parameters that knows documentation learns Python source in",
        f"{stored['steps']} steps of 16 windows of 64 bytes, each method at the best of three learning rates, mean of",
        f"{stored['seeds']} seeds. Target is the loss on source not seen, old text the loss on documentation not seen,",
        "in nats per byte. Memory is optimizer state, gradients, and what a forward pass keeps for the backward pass;",
        "most of it here are activations. Stored is the smallest file beside the base model, seconds are of one core.",
        "",
        "![Loss on the target against loss on the old text for every method](pictures/which-one.png)\n",
        "| method | rate | trained | target | old text | seconds | memory | stored |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| *start* | | | {start['target']:.3f} | {start['control']:.3f} | | | |",
    ]
    for row in stored["rows"]:
        lines.append(
            f"| {row['method']} | {row['rate']:.2g} | {row['trainable']:,.0f} | {row['target']:.3f} | "
            f"{row['control']:.3f} | {row['seconds']:.1f} | {row['memory'] / 1e6:.1f} MB | "
            f"{row['stored'] / 1e3:,.0f} kB |"
        )
    lines += [
        "",
        "The teacher of pld is the same model trained four times as long on the same text. Weight compander is made",
        "for SGD, so SGD without it is shown too. Meta rescaling needs one class per sample and spdf starts at",
        "pre-training, so neither is here; their pages compare them on tasks of their own.",
        "",
        "`python benchmarks/which_one.py --store` measures the table; `weightsmith run examples/adapters.yaml`",
        "compares the methods of adapt on SmolLM2 under equal trainable parameters.",
        f"\n<small>{stored['machine']['device']}, torch {stored['machine']['torch']}.</small>",
    ]
    return "\n".join(lines) + "\n"


def _draw_which(stored: Mapping[str, Any], path: Path) -> None:
    """Target against old text; the area of a dot is the stored bytes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    middle = sum(row["target"] for row in stored["rows"]) / len(stored["rows"])
    for number, row in enumerate(sorted(stored["rows"], key=lambda row: row["target"])):
        ours = row["method"].split(",")[0].split(" (")[0] in {m.slug for m in catalog.METHODS}
        color = COLORS["method" if ours else "baseline"]
        axes.scatter(row["target"], row["control"], s=row["stored"] / 2500 + 8, color=color, alpha=0.55, linewidth=0)
        left = not ours and row["target"] > middle  # keeps the crowd on the right half readable
        axes.annotate(
            row["method"],
            (row["target"], row["control"]),
            xytext=(-13, -3) if left else (9, (9, -15)[number % 2]),
            textcoords="offset points",
            ha="right" if left else "left",
            size=8,
        )
    axes.axhline(stored["start"]["control"], color=COLORS["control"], lw=1, ls=":")
    axes.text(
        1,
        stored["start"]["control"],
        "old text at the start",
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",
        size=8,
        color=COLORS["control"],
    )
    axes.set_xlabel("loss on the target, nats per byte (lower is better)")
    axes.set_ylabel("loss on the old text, nats per byte (lower is better)")
    axes.margins(0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def _number(value: float) -> str:
    """Three significant digits, without an exponent.

    Examples
    --------
    >>> _number(1448.0), _number(0.067261)
    ('1,448', '0.0673')
    """
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _measured() -> list[dict[str, Any]]:
    return [claim for method in catalog.METHODS if not method.planned for claim in claims.stored(method.slug)]


def _name(claim: Mapping[str, Any]) -> str:
    return f"{claim['slug']}-{claim['experiment']}" if claim["experiment"] else claim["slug"]


def _draw(claim: Mapping[str, Any], path: Path) -> None:
    """One row per arm: every seed as a dot, the mean with its 95 % interval as a bar."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    arms = claim["arms"]
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.42 * len(arms)), layout="constrained")
    for row, arm in enumerate(arms):
        color, (low, high) = COLORS[arm["role"]], arm["ci95"]
        axes.plot([low, high], [row, row], color=color, linewidth=2.5, alpha=0.6, solid_capstyle="round")
        axes.scatter(arm["values"], [row] * len(arm["values"]), color=color, s=14, alpha=0.45, linewidth=0)
        axes.scatter(arm["mean"], row, color=color, s=52, zorder=3)
    axes.set_yticks(range(len(arms)), [f"{arm['name']}  ({arm['role']})" for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    label = f"{claim['metric']} ({'higher' if claim['higher_is_better'] else 'lower'} is better)"
    figure.supxlabel(textwrap.fill(label, 90), size="medium")
    axes.grid(axis="x", color="#e3e0da")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    write()
