r"""Judge a paper's claim: arms measured on the same seeds, paired differences, a verdict that is computed.

A claim file declares what it expects before it measures anything, and returns what came out::

    CLAIM = Claim(
        slug="wina",
        title="WINA",
        statement="At 50 % sparsity WINA reconstructs a layer's output better than TEAL.",
        metric="relative output error",
        higher_is_better=False,
        expected=(Ordering(better="wina", worse="teal"), Ordering(better="wina", worse="random")),
    )


    def run(scale: str = "cpu", seeds: Sequence[int] = (0, 1, 2)) -> ClaimResult:
        start = time.perf_counter()
        values = each_seed(experiment, seeds, "WINA against TEAL")  # experiment(seed) -> {"wina": 0.3, ...}
        arms = [
            Arm("wina", "method", values["wina"]),
            Arm("teal", "baseline", values["teal"]),
            Arm("random", "control", values["random"]),
        ]
        return ClaimResult.judge(CLAIM, arms, scale=scale, seeds=seeds, seconds=time.perf_counter() - start)

An experiment that is larger at the scale ``"gpu"`` declares it: ``Claim(..., scales=("cpu", "gpu"))``. One that is not
runs, and is stored, as ``"cpu"``.

A file with several experiments declares a :class:`Claim` for each, told apart by ``experiment=``, and its
``run`` returns a list of :class:`ClaimResult`; each is stored in a file of its own.

An ordering :math:`a > b` with margin :math:`m` holds when the lower end of the 95 % interval of the paired
advantage of :math:`a` over :math:`b` is above :math:`m`:

.. math::

    \bar d - t_{0.975,\,n-1} \, \frac{s_d}{\sqrt n} > m, \qquad d_i = \pm (a_i - b_i)

with the sign that makes better positive. What we declare holds when all its orderings do. A negative finding is
declared the same way: ``Ordering(better="wanda", worse="wanda + dsnot")`` expects that the paper's method loses, and
two orderings with a negative margin expect a tie (neither loses to the other by more than that). What the paper claims
is declared beside it (``claimed``), as orderings of the same arms: both verdicts are shown, since what we expected of
a method may be the opposite of what its paper says.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from rich.table import Table

from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.interval import Interval
from weightsmith.core.io import write_file
from weightsmith.core.progress import track
from weightsmith.core.results import environment

__all__ = [
    "Arm",
    "Claim",
    "ClaimResult",
    "Interval",
    "Ordering",
    "PaperVerdict",
    "each_seed",
    "measured",
    "run_claim",
    "scales_of",
    "user_data",
]

DATA = "WEIGHTSMITH_DATA"
"""Environment variable that names the folder of the user's own data."""

PaperVerdict: TypeAlias = Literal["confirmed", "tie", "not confirmed"]
"""What a measurement says of a paper's claim."""


@dataclass(frozen=True)
class Ordering:
    """An expectation: one arm beats another.

    Attributes
    ----------
    better, worse : str
        Names of arms.
    margin : float, default: 0.0
        By how much at least, in the metric's unit. A negative margin expects only that ``better`` does not lose
        by more than that. For a factor take the logarithm as metric: "half the perplexity" is a margin of
        ``log(2)`` on log-perplexity.
    """

    better: str
    worse: str
    margin: float = 0.0


@dataclass(frozen=True)
class Claim:
    """What is expected, declared before the experiment runs.

    Attributes
    ----------
    slug : str
        The method, as in the catalog.
    title : str
        Name of the experiment, a few words.
    statement : str
        The expectation as a sentence.
    metric : str
        What the arms' values are, with its unit.
    higher_is_better : bool
        The direction of the metric.
    expected : sequence of Ordering
        The expectation as orderings of arms; the verdict is computed from these.
    experiment : str, default: ""
        Tells several experiments of one slug apart (lower case, no spaces).
    paper : str, default: ""
        What the paper claims.
    claimed : sequence of Ordering, default: ()
        The paper's claim as orderings of the same arms; empty where the paper has no such experiment.
    scales : sequence of str, default: ("cpu",)
        Sizes that the experiment has; with ``"gpu"`` it has a larger one.
    """

    slug: str
    title: str
    statement: str
    metric: str
    higher_is_better: bool
    expected: Sequence[Ordering]
    experiment: str = ""
    paper: str = ""
    claimed: Sequence[Ordering] = ()
    scales: Sequence[str] = ("cpu",)

    @property
    def name(self) -> str:
        """The slug, with the experiment's name where there is one.

        Examples
        --------
        >>> Claim("wina", "", "", "error", False, (), experiment="synthetic").name
        'wina-synthetic'
        """
        return f"{self.slug}-{self.experiment}" if self.experiment else self.slug


@dataclass(frozen=True)
class Arm:
    """One competitor, measured on every seed.

    Attributes
    ----------
    name : str
        Unique within the experiment.
    role : {"method", "baseline", "control"}
        The method, a method a user would take instead, or the cheap explanation that must be ruled out.
    values : sequence of float
        One value per seed, in the order of the seeds: arms are compared seed by seed.
    """

    name: str
    role: Literal["method", "baseline", "control"]
    values: Sequence[float]


@dataclass(frozen=True)
class ClaimResult:
    """A measured claim.

    Attributes
    ----------
    claim : Claim
        What was expected.
    arms : sequence of Arm
        What was measured.
    scale : str
        ``"cpu"`` or ``"gpu"``.
    seeds : sequence of int
        The seeds, in the order of the arms' values.
    seconds : float
        Wall time of the experiment.
    notes : sequence of str
        What the reader should know: deviations, what was tried.
    versions : dict
        Machine and versions.
    """

    claim: Claim
    arms: Sequence[Arm]
    scale: str
    seeds: Sequence[int]
    seconds: float
    notes: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def judge(
        cls,
        claim: Claim,
        arms: Sequence[Arm],
        *,
        scale: str,
        seeds: Sequence[int],
        seconds: float,
        notes: Sequence[str] = (),
    ) -> ClaimResult:
        """Check that the arms can be compared and return the judged claim, of scale ``"cpu"`` if it has no other.

        Raises
        ------
        HyperparameterError
            If there are fewer than three seeds, two arms share a name, or an ordering names no arm.
        ShapeError
            If an arm has not one value per seed.
        NonFiniteError
            If a value is NaN or infinite.

        Examples
        --------
        >>> claim = Claim("x", "X", "a beats b", "accuracy", True, [Ordering("a", "b")])
        >>> arms = [Arm("a", "method", [0.90, 0.91, 0.92]), Arm("b", "baseline", [0.80, 0.82, 0.81])]
        >>> ClaimResult.judge(claim, arms, scale="cpu", seeds=(0, 1, 2), seconds=1.0).holds
        True
        """
        if len(set(seeds)) < max(3, len(seeds)):
            raise HyperparameterError(
                f"seeds of claim {claim.name!r}", found=list(seeds), expected="at least 3, all different"
            )
        names = [arm.name for arm in arms]
        for arm in arms:
            if names.count(arm.name) > 1:
                raise HyperparameterError(f"arms of claim {claim.name!r}", found=f"{arm.name!r} twice")
            if len(arm.values) != len(seeds):
                raise ShapeError(f"values of arm {arm.name!r}", found=len(arm.values), expected=f"{len(seeds)} seeds")
            if not all(map(math.isfinite, arm.values)):
                raise NonFiniteError(f"values of arm {arm.name!r}", found=list(arm.values))
        unknown = {name for order in (*claim.expected, *claim.claimed) for name in (order.better, order.worse)} - set(
            names
        )
        if unknown or not claim.expected:
            raise HyperparameterError(
                f"orderings of claim {claim.name!r}",
                found=sorted(unknown) or None,
                expected=f"one or more of {names}",
            )
        scale = scale if scale in claim.scales else "cpu"
        return cls(claim, tuple(arms), scale, tuple(seeds), seconds, tuple(notes), environment())

    @property
    def holds(self) -> bool:
        """Whether every ordering that we declared holds."""
        return all(self.confirms(order) for order in self.claim.expected)

    @property
    def paper_verdict(self) -> PaperVerdict | None:
        """What this measurement says of the paper's own claim; None where the paper has no such experiment.

        The claim is confirmed if all of its orderings hold. It is not if one of them is reversed: the interval of the
        paired advantage lies below the margin. Otherwise the arms tie.
        """
        if not self.claim.claimed:
            return None
        if all(self.confirms(order) for order in self.claim.claimed):
            return "confirmed"
        reversed_ = any(self.advantage(order).high < order.margin for order in self.claim.claimed)
        return "not confirmed" if reversed_ else "tie"

    def advantage(self, order: Ordering) -> Interval:
        """Return by how much ``order.better`` beats ``order.worse``, paired by seed; positive is better."""
        values = {arm.name: np.asarray(arm.values, dtype=float) for arm in self.arms}
        difference = values[order.better] - values[order.worse]
        return Interval.of((difference if self.claim.higher_is_better else -difference).tolist())

    def confirms(self, order: Ordering) -> bool:
        """Whether the interval of the paired advantage lies above the ordering's margin."""
        return self.advantage(order).low > order.margin

    def to_dict(self) -> dict[str, Any]:
        """Return everything, the computed verdict included, in JSON's types."""
        claim = asdict(self.claim)
        del claim["scales"]
        expected, claimed = (
            [
                {**asdict(order), **_rounded("advantage", self.advantage(order)), "holds": self.confirms(order)}
                for order in orders
            ]
            for orders in (self.claim.expected, self.claim.claimed)
        )
        arms = [
            {
                "name": arm.name,
                "role": arm.role,
                **_rounded("mean", Interval.of(arm.values)),
                "values": [*arm.values],
            }
            for arm in self.arms
        ]
        return {
            **claim,
            "scale": self.scale,
            "holds": self.holds,
            "expected": expected,
            "paper_verdict": self.paper_verdict,
            "claimed": claimed,
            "seeds": [*self.seeds],
            "arms": arms,
            "seconds": round(self.seconds, 1),
            "notes": [*self.notes],
            "versions": dict(self.versions),
        }

    def store(self, folder: str | Path) -> Path:
        """Write ``<slug>[-<experiment>].json`` into ``folder`` and return its path."""
        path = Path(folder) / f"{self.claim.name}.json"
        write_file(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")
        return path

    def table(self) -> Table:
        """Return the arms, the paired differences and the verdict as a rich table."""
        direction = "higher is better" if self.claim.higher_is_better else "lower is better"
        verdict = "[bold green]held[/]" if self.holds else "[bold red]not held[/]"
        paper = f"the paper's claim, at this scale: [bold]{self.paper_verdict}[/] · " if self.paper_verdict else ""
        run = f"{len(self.seeds)} seeds · {self.seconds:.0f} s · mean ± 95 % interval"
        table = Table(
            title=f"{self.claim.name}: {self.claim.statement}",
            caption=f"{paper}what we declared: {verdict}\n{run}",
            title_justify="left",
            caption_justify="left",
            title_style="bold",
        )
        table.add_column("arm")
        table.add_column("role", style="dim")
        table.add_column(f"{self.claim.metric} ({direction})", justify="right")
        for arm in self.arms:
            table.add_row(arm.name, arm.role, str(Interval.of(arm.values)))
        table.add_section()
        for order in self.claim.expected:
            mark = "[green]✓[/]" if self.confirms(order) else "[red]✗[/]"
            by = f" by {order.margin:g}" if order.margin else ""
            table.add_row(f"{order.better} > {order.worse}{by}", f"paired {mark}", str(self.advantage(order)))
        return table


def scales_of(run: Callable[..., Any]) -> list[str]:
    """Return the scales of the claims in the file of a ``run``.

    Examples
    --------
    >>> scales_of(lambda scale, seeds: [])
    ['cpu']
    """
    names = getattr(inspect.unwrap(run), "__globals__", {}).values()
    return sorted({"cpu"}.union(*(value.scales for value in names if isinstance(value, Claim))))


def run_claim(run: Callable[..., Any], *, scale: str = "cpu", seeds: Sequence[int] | None = None) -> list[ClaimResult]:
    """Call a claim file's ``run``, with its own seeds where none are given; its one or several results as a list.

    Raises
    ------
    HyperparameterError
        If the claim has no such scale.
    """
    if scale not in scales_of(run):
        raise HyperparameterError(f"scale of {run.__module__}", found=scale, expected=" or ".join(scales_of(run)))
    chosen = {} if seeds is None else {"seeds": seeds}
    outcome = run(scale=scale, **chosen)
    return [*outcome] if isinstance(outcome, (list, tuple)) else [outcome]


def each_seed(
    experiment: Callable[[int], Mapping[str, float]], seeds: Sequence[int], description: str
) -> dict[str, list[float]]:
    """Run ``experiment(seed)`` for each seed, with progress, and gather its values by name.

    Raises
    ------
    HyperparameterError
        If the runs differ in names.

    Examples
    --------
    >>> each_seed(lambda seed: {"a": seed + 0.5, "b": 0.0}, (0, 1, 2), "toy")
    {'a': [0.5, 1.5, 2.5], 'b': [0.0, 0.0, 0.0]}
    """
    runs = [experiment(seed) for seed in track(seeds, description)]
    for seed, run in zip(seeds, runs, strict=True):
        if run.keys() != runs[0].keys():
            expected = f"those of seed {seeds[0]}: {[*runs[0]]}"
            raise HyperparameterError(f"arms of seed {seed}", found=[*run], expected=expected)
    return {name: [float(run[name]) for run in runs] for name in runs[0]}


def measured(
    claim: Claim,
    experiment: Callable[[int], Mapping[str, float]],
    role: Callable[[str], str],
    *,
    scale: str,
    seeds: Sequence[int],
    notes: Sequence[str] = (),
) -> ClaimResult:
    """Run an experiment whose values are its arms for each seed, and judge the claim.

    Parameters
    ----------
    claim : Claim
        What is expected.
    experiment : callable
        ``experiment(seed)`` returns a value per arm.
    role : callable
        ``role(name)`` is ``"method"``, ``"baseline"`` or ``"control"``.
    scale, seeds, notes
        As for :meth:`ClaimResult.judge`.

    Examples
    --------
    >>> claim = Claim("toy", "toy", "it wins", "points", True, [Ordering("a", "b")])
    >>> roles = {"a": "method", "b": "control"}
    >>> measured(claim, lambda seed: {"a": seed + 1.0, "b": seed}, roles.get, scale="cpu", seeds=(0, 1, 2)).holds
    True
    """
    start = time.perf_counter()
    values = each_seed(experiment, seeds, claim.title)
    arms = [Arm(name, role(name), numbers) for name, numbers in values.items()]  # type: ignore[arg-type]
    return ClaimResult.judge(claim, arms, scale=scale, seeds=seeds, seconds=time.perf_counter() - start, notes=notes)


def user_data(name: str, experiment: str) -> Path | None:
    """Return the path of data of the user's own; where it is absent print that the experiment is left out.

    Parameters
    ----------
    name : str
        A file or folder in the folder that the environment variable ``WEIGHTSMITH_DATA`` names.
    experiment : str
        What cannot run without it.

    Examples
    --------
    >>> user_data("no-such-data", "the experiment on images") is None
    True
    """
    root = os.environ.get(DATA)
    path = Path(root, name) if root else None
    if path is not None and path.exists():
        return path
    reason = f"{path} does not exist" if path is not None else f"{DATA} is not set; it names the folder of {name}"
    print(f"left out: {experiment} ({reason})", file=sys.stderr)
    return None


def _rounded(name: str, interval: Interval) -> dict[str, Any]:
    """The mean under its name and the interval, to the six digits that a reader can use.

    >>> _rounded("mean", Interval(1 / 3, 0.0, 2 / 3))
    {'mean': 0.333333, 'ci95': [0.0, 0.666667]}
    """
    mean, low, high = (float(f"{value:.6g}") for value in (interval.mean, interval.low, interval.high))
    return {name: mean, "ci95": [low, high]}
