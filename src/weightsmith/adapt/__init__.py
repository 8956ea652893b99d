"""Fine-tune a few weights well."""

from __future__ import annotations

from weightsmith.core.lazy import lazily

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

__getattr__, __dir__ = lazily(__name__, _HOMES)
