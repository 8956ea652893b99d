"""Other sizes from trained weights."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Learngene": "weightsmith.grow.learngene",
    "LinearExpansion": "weightsmith.grow.linear_expansion",
    "MixtureGrowth": "weightsmith.grow.mixture_growth",
    "distil": "weightsmith.grow.distillation",
    "expand": "weightsmith.grow.depth",
    "parameter_groups": "weightsmith.grow.mixture_growth",
    "retention": "weightsmith.grow.learngene",
    "share_stages": "weightsmith.grow.learngene",
    "soft_distillation": "weightsmith.grow.distillation",
    "widen_net2net": "weightsmith.grow.widening",
}
"""The module of every name offered here; imported when the name is used."""

__all__ = [
    "Learngene",
    "LinearExpansion",
    "MixtureGrowth",
    "distil",
    "expand",
    "parameter_groups",
    "retention",
    "share_stages",
    "soft_distillation",
    "widen_net2net",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
