"""Every method of the catalog keeps the contract of :mod:`weightsmith.testing`."""

from __future__ import annotations

import pytest

from weightsmith import catalog
from weightsmith.signature import read
from weightsmith.testing import ARCHITECTURES, transform_checks

SIGNATURES = {name: read(catalog.load(m.commands[name].entry)) for name, m in catalog.commands().items()}
TRANSFORMS = {name: s for name, s in SIGNATURES.items() if s.model is not None and not s.measures}
SMALL = {
    "bone": {"r": 2},
    "kappatune": {"rank": 2},
    "d2nwg-layers": {"include": "*[vo]*", "chunk": 16, "latent": 4, "vae_steps": 5, "steps": 5, "candidates": 1},
    "expand": {"depth": 3},
    "learngene": {"stages": 1},
    "weight-compander": {"learn": True},
}
"""Options that make a method small enough for a test, or that it cannot do without."""

STACKED = ("t5", "cnn", "mlp")
REFUSES = {
    "expand": STACKED,
    "learngene": STACKED,
    "mixture-growth": ("cnn", "mlp"),
}
"""Architectures a method refuses by name; it must work on all others."""

FAST = ("llama", "t5", "mixtral", "cnn")
"""The others are slow tests."""


def cases():
    for name, signature in TRANSFORMS.items():
        training = {"batch_size": 8, "epochs": 1, "tune_epochs": 1}
        options = {**SMALL.get(name, {}), **{key: value for key, value in training.items() if key in signature.fields}}
        for model in ARCHITECTURES:
            marks = [] if model in FAST else [pytest.mark.slow]
            checks = transform_checks(
                signature.function, options=options, refuses=REFUSES.get(name, ()), models=[model]
            )
            for check, run in checks:
                yield pytest.param(run, id=f"{name}-{check}", marks=marks)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", cases())
def test_transforms(check):
    check()
