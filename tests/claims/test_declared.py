"""Claims run as they were stored: on the same seeds, and at the scales that they have."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from weightsmith import catalog, claims

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
