"""Other sizes from trained weights."""

from __future__ import annotations

from weightsmith.core.lazy import lazily

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
    "teacher_logits": "weightsmith.grow.distillation",
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
    "teacher_logits",
    "widen_net2net",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
