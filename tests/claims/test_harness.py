"""The claims harness: the interval is Student's, the verdict is computed, incomparable arms are refused."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from scipy import stats

from weightsmith.claims.harness import Arm, Claim, ClaimResult, Interval, Ordering, each_seed
from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError

GOOD = [0.90, 0.93, 0.91, 0.95]
BAD = [0.80, 0.84, 0.80, 0.86]
NOISY = [0.70, 0.99, 0.60, 0.99]


def judge(*expected, claimed=(), higher_is_better=True, seeds=(0, 1, 2, 3), **arms):
    claim = Claim("toy", "Toy", "good beats bad", "accuracy", higher_is_better, expected, claimed=claimed)
    roles = ("method", "baseline", "control")
    made = [Arm(name, role, values) for (name, values), role in zip(arms.items(), roles, strict=False)]
    return ClaimResult.judge(claim, made, scale="cpu", seeds=seeds, seconds=1.5)


def test_interval_is_students():
    interval = Interval.of(GOOD)
    low, high = stats.t.interval(0.95, df=3, loc=interval.mean, scale=stats.sem(GOOD))
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_paired_difference_sees_what_separate_intervals_do_not():
    seeds_differ_more_than_arms = [10.0, 20.0, 30.0, 40.0]
    slightly_better = [10.5, 20.6, 30.4, 40.5]
    result = judge(Ordering("a", "b"), a=slightly_better, b=seeds_differ_more_than_arms)
    assert Interval.of(slightly_better).low < Interval.of(seeds_differ_more_than_arms).high
    assert result.holds


@pytest.mark.parametrize(
    ("expected", "holds"),
    [
        ([Ordering("good", "bad")], True),
        ([Ordering("bad", "good")], False),
        ([Ordering("good", "noisy")], False),
        ([Ordering("good", "bad"), Ordering("good", "noisy")], False),
        ([Ordering("good", "bad", margin=0.05)], True),
        ([Ordering("good", "bad", margin=0.10)], False),
        ([Ordering("bad", "good", margin=-0.15)], True),
    ],
)
def test_verdict(expected, holds):
    assert judge(*expected, good=GOOD, bad=BAD, noisy=NOISY).holds is holds


@pytest.mark.parametrize(
    ("claimed", "verdict"),
    [
        ([], None),
        ([Ordering("good", "bad")], "confirmed"),
        ([Ordering("good", "noisy")], "tie"),
        ([Ordering("good", "bad"), Ordering("good", "noisy")], "tie"),
        ([Ordering("bad", "good")], "not confirmed"),
        ([Ordering("good", "bad"), Ordering("bad", "good"), Ordering("good", "noisy")], "not confirmed"),
        ([Ordering("good", "bad", margin=0.2)], "not confirmed"),
    ],
)
def test_the_papers_claim_is_judged_beside_what_we_declared(claimed, verdict):
    result = judge(Ordering("good", "bad"), claimed=claimed, good=GOOD, bad=BAD, noisy=NOISY)
    assert result.holds
    assert result.paper_verdict == verdict
    assert result.to_dict()["paper_verdict"] == verdict


def test_lower_is_better_turns_the_sign():
    result = judge(Ordering("bad", "good"), higher_is_better=False, good=GOOD, bad=BAD)
    assert result.holds
    assert result.advantage(Ordering("bad", "good")).mean == pytest.approx(0.0975)


def test_equal_arms_are_not_better():
    assert not judge(Ordering("a", "b"), a=GOOD, b=GOOD).holds


@pytest.mark.parametrize(
    ("error", "arms", "seeds", "expected"),
    [
        (HyperparameterError, {"a": [1.0, 2.0], "b": [1.0, 2.0]}, (0, 1), [Ordering("a", "b")]),
        (HyperparameterError, {"a": GOOD, "b": BAD}, (0, 0, 1, 2), [Ordering("a", "b")]),
        (HyperparameterError, {"a": GOOD, "b": BAD}, (0, 1, 2, 3), [Ordering("a", "c")]),
        (HyperparameterError, {"a": GOOD, "b": BAD}, (0, 1, 2, 3), []),
        (ShapeError, {"a": GOOD, "b": BAD[:3]}, (0, 1, 2, 3), [Ordering("a", "b")]),
        (NonFiniteError, {"a": GOOD, "b": [*BAD[:3], math.nan]}, (0, 1, 2, 3), [Ordering("a", "b")]),
    ],
)
def test_what_cannot_be_compared_is_refused(error, arms, seeds, expected):
    with pytest.raises(error):
        judge(*expected, seeds=seeds, **arms)


def test_two_arms_of_one_name_are_refused():
    claim = Claim("toy", "Toy", "", "accuracy", True, [Ordering("a", "a")])
    with pytest.raises(HyperparameterError, match="'a' twice"):
        ClaimResult.judge(
            claim,
            [Arm("a", "method", GOOD), Arm("a", "baseline", BAD)],
            scale="cpu",
            seeds=range(4),
            seconds=0.0,
        )


def test_stored_json_has_the_verdict_and_every_value(tmp_path):
    result = judge(Ordering("good", "bad"), Ordering("bad", "good"), good=GOOD, bad=BAD)
    stored = json.loads(result.store(tmp_path).read_text())
    assert (tmp_path / "toy.json").exists()
    assert stored["holds"] is False
    assert [order["holds"] for order in stored["expected"]] == [True, False]
    assert stored["arms"][0]["values"] == GOOD
    assert stored["arms"][0]["role"] == "method"
    assert stored["arms"][0]["ci95"][0] < stored["arms"][0]["mean"] < stored["arms"][0]["ci95"][1]
    assert {"slug", "scale", "seeds", "metric", "seconds", "versions"} <= set(stored)


def test_table_shows_arms_and_verdict():
    result = judge(Ordering("good", "noisy"), good=GOOD, bad=BAD, noisy=NOISY)
    out = io.StringIO()
    Console(file=out, width=120).print(result.table())
    assert "what we declared: not held" in out.getvalue()
    assert "0.9225 ± 0.035" in out.getvalue()
    assert "good > noisy" in out.getvalue()


def test_each_seed_pairs_the_arms():
    assert each_seed(lambda seed: {"x": seed, "y": -seed}, (3, 5), "toy") == {
        "x": [3.0, 5.0],
        "y": [-3.0, -5.0],
    }


@pytest.mark.parametrize("last", [{"a": 1.0, "late": 2.0}, {}])
def test_runs_with_other_arms_are_refused(last):
    with pytest.raises(HyperparameterError, match=r"arms of seed 2: .*expected those of seed 0: \['a'\]"):
        each_seed(lambda seed: last if seed == 2 else {"a": 1.0}, (0, 1, 2), "toy")


def test_a_claim_that_cannot_be_stored_leaves_the_old_one(tmp_path, monkeypatch):
    result = judge(Ordering("good", "bad"), good=GOOD, bad=BAD)
    path = result.store(tmp_path)
    before = path.read_text()

    def fail(self, raw):
        with open(self, "wb") as file:
            file.write(raw[:10])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    monkeypatch.setattr(Path, "write_text", lambda self, text, **_: fail(self, text.encode()))
    with pytest.raises(OSError, match="disk full"):
        result.store(tmp_path)
    assert path.read_text() == before
    assert [*tmp_path.iterdir()] == [path]
