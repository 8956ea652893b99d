"""The page "What holds": every method's claim against its baseline and its control, in one table and one picture."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith import catalog, claims
from weightsmith.core.interval import Interval

__all__ = ["Row", "draw", "page", "row", "rows"]

DOCS = Path(__file__).parent
VERDICTS = {
    "holds": "better than the baseline, by the margin that was declared, and than the control",
    "control as good": "better than the baseline, but the cheap explanation does as well or better",
    "not resolved": "not told apart from the baseline, or from a lead too small to count",
    "does not hold": "the baseline is better",
}
COLORS = {"holds": "#2e7d32", "control as good": "#b26a00", "not resolved": "#6b6b6b", "does not hold": "#b3261e"}
MARKS = {"holds": "✔", "control as good": "≈", "not resolved": "?", "does not hold": "✘"}


@dataclass(frozen=True)
class Row:
    """What one method's deciding experiment says.

    Attributes
    ----------
    slug : str
        The method.
    about : mapping
        Its entry in ``what-holds.toml``.
    claim : mapping
        The stored experiment.
    over_baseline, over_control : Interval
        Paired differences, positive where the method is better, as shares of the span between the worst and the best
        arm of the experiment; the second is None where there is no control.
    margin : float
        The smallest lead over the baseline that counts, as such a share: the margin that the experiment declares, or 0.
    """

    slug: str
    about: Mapping[str, str]
    claim: Mapping[str, Any]
    over_baseline: Interval
    over_control: Interval | None
    margin: float

    @property
    def verdict(self) -> str:
        """One of ``VERDICTS``, computed from the two intervals and the margin."""
        if self.over_baseline.high < 0:
            return "does not hold"
        if self.over_baseline.low <= self.margin:
            return "not resolved"
        return "control as good" if self.over_control is not None and self.over_control.low <= 0 else "holds"

    def mean(self, role: str) -> float:
        """The mean of an arm."""
        return float(_arm(self.claim, self.about[role])["mean"])


def rows() -> list[Row]:
    """Return one row per method, in the order of the catalog."""
    about = tomllib.loads((DOCS / "what-holds.toml").read_text("utf-8"))
    ready = [method.slug for method in catalog.METHODS if not method.planned]
    return [row(slug, about[slug], claims.stored(slug)) for slug in ready]


def row(slug: str, about: Mapping[str, str], stored: Sequence[Mapping[str, Any]]) -> Row:
    """Compare the method of one of the stored experiments with its baseline and its control."""
    claim = next(each for each in stored if each["experiment"] == about.get("experiment", ""))
    means = [arm["mean"] for arm in claim["arms"]]
    span = (max(means) - min(means) or 1.0) * (1 if claim["higher_is_better"] else -1)

    def over(role: str) -> Interval:
        ours, theirs = (_arm(claim, about[each])["values"] for each in ("method", role))
        return _interval([(a - b) / span for a, b in zip(ours, theirs, strict=True)])

    pair = about["method"], about["baseline"]
    margins = [o["margin"] for o in claim["expected"] if (o["better"], o["worse"]) == pair]
    margin = max([0.0, *margins]) / abs(span)
    return Row(slug, about, claim, over("baseline"), over("control") if "control" in about else None, margin)


def _interval(values: Sequence[float]) -> Interval:
    """An interval; of equal values it is that value, where the formula gives NaN or rounding."""
    return Interval.of(values) if max(values) > min(values) else Interval(values[0], values[0], values[0])


def _arm(claim: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    arm: Mapping[str, Any] = next(arm for arm in claim["arms"] if arm["name"] == name)
    return arm


def page() -> str:
    """Return the page in Markdown."""
    found = rows()
    counts = {verdict: sum(row.verdict == verdict for row in found) for verdict in VERDICTS}
    said = [f"**{count}** {MARKS[verdict]} {verdict} ({VERDICTS[verdict]})" for verdict, count in counts.items()]
    lines = [
        "<!-- written by docs/generate.py -->",
        "",
        "# What holds\n",
        f"{len(found)} papers, each method rebuilt and measured on two CPU cores against a baseline and against",
        "a control: the cheap explanation of its success. One experiment per paper decides here; all of them, with",
        "every arm and seed, are on [Claims](claims.md). The models are small: a paper about billions of weights is",
        "not refuted by a model of 135 million, but a user of small models should know.\n",
        *[f"- {each}" for each in said],
        "",
        "![The advantage of every method over its baseline and its control](pictures/what-holds.png)\n",
        "*Thick bar: the method's advantage over its control, thin bar: over its baseline; both with 95 % intervals of",
        "the differences paired by seed. The unit is the span from the worst to the best arm of the experiment: 0",
        "means no difference and 1 the whole span; bars are cut at 1.15.*\n",
        "| | method | the paper | here: method, baseline, control | measured | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        about, arrow = row.about, "higher" if row.claim["higher_is_better"] else "lower"
        arms = [
            f"{about[role]} **{row.mean(role):.4g}**" for role in ("method", "baseline", "control") if role in about
        ]
        note = f" {about['note']}" if "note" in about else ""
        lines.append(
            f"| {MARKS[row.verdict]} | [{row.slug}](methods/{row.slug}.md) | {about['paper']} | {'; '.join(arms)} | "
            f"{row.claim['metric']} ({arrow} is better), {len(row.claim['seeds'])} seeds | **{row.verdict}.**{note} |"
        )
    return "\n".join(lines) + "\n"


def draw(path: Path) -> None:
    """Draw every method's advantage over its control and its baseline."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    order = list(VERDICTS)
    found = sorted(rows(), key=lambda row: (order.index(row.verdict), -row.over_baseline.mean))
    figure, axes = plt.subplots(figsize=(8.5, 0.29 * len(found) + 1.2), layout="constrained")
    for place, row in enumerate(found):
        color = COLORS[row.verdict]
        for interval, offset, width, size in ((row.over_control, -0.15, 5, 30), (row.over_baseline, 0.2, 1.6, 14)):
            if interval is None:
                continue
            low, high = max(interval.low, -1.15), min(interval.high, 1.15)
            axes.plot([low, high], [place + offset] * 2, color=color, lw=width, alpha=0.45, solid_capstyle="butt")
            axes.scatter(interval.mean, place + offset, color=color, s=size, zorder=3, linewidth=0)
        axes.text(1.2, place, row.verdict, color=color, va="center", size=8.5)
    for label, width in (("over its control", 5.0), ("over its baseline", 1.6)):
        axes.plot([], [], color="#444444", lw=width, alpha=0.45, label=label)
    axes.legend(loc="lower right", frameon=False, title="advantage of the method", title_fontsize=9, fontsize=9)
    axes.axvline(0, color="#444444", lw=0.9)
    axes.set_yticks(range(len(found)), [row.slug for row in found], size=9)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlim(-1.15, 1.15)
    axes.set_xlabel("worse  ←  advantage of the method, share of the span of all arms  →  better", size=9)
    axes.grid(axis="x", color="#e3e0da")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
