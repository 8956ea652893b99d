"""Claims run as they were stored: on the same seeds, and at the scales that they have."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from weightsmith import catalog, claims
from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, run_claim, scales_of
from weightsmith.core.errors import HyperparameterError

INSTALLED = [method for method in catalog.METHODS if not method.planned and method.installed]
DERIVED = {"meal-kit-mass", "recipe-ner-sampling"}
"""Experiments that draw several times per seed: what they store follows from the seeds."""


@pytest.mark.parametrize("method", INSTALLED, ids=lambda method: method.slug)
def test_a_run_without_seeds_takes_those_of_the_stored_run(method):
    run = inspect.unwrap(catalog.load(f"{method.claim_module}:run"))
    default = inspect.signature(run).parameters["seeds"].default
    source = Path(inspect.getfile(run)).read_text("utf-8")
    for claim in claims.stored(method.slug):
        seeds = claim["seeds"]
        if f"{claim['slug']}-{claim['experiment']}" in DERIVED:
            continue
        if default is not None:
            assert seeds == [*default][: len(seeds)], claim["title"]
        else:  # each experiment has its own
            first, end = seeds[0], seeds[-1] + 1
            assert f"range({first}, {end})" in source or (not first and f"range({end})" in source), claim["title"]


def chooses_by_scale(path):
    """Whether a file takes something by the scale, such as ``SIZES[scale]``."""
    return any(
        isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Name) and node.slice.id == "scale"
        for node in ast.walk(ast.parse(Path(path).read_text("utf-8")))
    )


@pytest.mark.parametrize("method", INSTALLED, ids=lambda method: method.slug)
def test_a_claim_has_the_scale_gpu_where_it_is_another_experiment(method):
    run = catalog.load(f"{method.claim_module}:run")
    module = sys.modules[method.claim_module]
    helpers = {getattr(value, "__module__", getattr(value, "__name__", "")) for value in vars(module).values()}
    private = [sys.modules[name] for name in sorted(map(str, helpers)) if name.startswith(f"{module.__package__}._")]
    assert ("gpu" in scales_of(run)) == any(chooses_by_scale(part.__file__) for part in (module, *private))


def test_an_experiment_without_a_larger_size_is_stored_as_the_small_one():
    claim = Claim("wina", "Toy", "a beats b", "accuracy", True, [Ordering("a", "b")])
    arms = [Arm("a", "method", [1.0, 2.0, 3.0]), Arm("b", "baseline", [0.0, 1.0, 1.5])]
    judge = partial(ClaimResult.judge, arms=arms, scale="gpu", seeds=(0, 1, 2), seconds=0.0)
    assert judge(claim).scale == "cpu"
    assert judge(replace(claim, scales=("cpu", "gpu"))).scale == "gpu"


def test_another_scale_is_refused():
    def run(scale, seeds):
        raise AssertionError

    with pytest.raises(HyperparameterError, match=r"scale of .*test_declared: found gpu, expected cpu"):
        run_claim(run, scale="gpu")
