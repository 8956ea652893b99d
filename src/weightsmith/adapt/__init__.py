"""Fine-tune a few weights well."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "BoneConfig": "weightsmith.adapt.bone",
    "LIFTAdamW": "weightsmith.adapt.lift",
    "SparseDelta": "weightsmith.adapt.lift",
    "apply_delta": "weightsmith.adapt.lift",
    "export_shira": "weightsmith.adapt.lift",
    "freeze_except": "weightsmith.adapt.kappatune",
    "highest_targets": "weightsmith.adapt.kappatune",
    "lift_groups": "weightsmith.adapt.lift",
    "load_delta": "weightsmith.adapt.lift",
    "match_rank": "weightsmith.adapt.kappatune",
    "principal_mask": "weightsmith.adapt.lift",
    "random_targets": "weightsmith.adapt.kappatune",
    "save_delta": "weightsmith.adapt.lift",
    "shape_matched_targets": "weightsmith.adapt.kappatune",
}
"""The module of every name offered here; imported when the name is used, as PEFT takes seconds to load."""

__all__ = [
    "BoneConfig",
    "LIFTAdamW",
    "SparseDelta",
    "apply_delta",
    "export_shira",
    "freeze_except",
    "highest_targets",
    "lift_groups",
    "load_delta",
    "match_rank",
    "principal_mask",
    "random_targets",
    "save_delta",
    "shape_matched_targets",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
