"""One network from several."""

from __future__ import annotations

from weightsmith.core.lazy import lazily

_HOMES = {
    "HEADS": "weightsmith.merge.wise_ft",
    "MixupCollator": "weightsmith.merge.bang",
    "PermutationSpec": "weightsmith.merge.weight_matching",
    "ZeroShotHead": "weightsmith.merge.zero_shot",
    "add_tasks": "weightsmith.merge.arithmetic",
    "average": "weightsmith.merge.arithmetic",
    "balance_logit_scale": "weightsmith.merge.temperature",
    "bang_loss": "weightsmith.merge.bang",
    "calibration_error": "weightsmith.merge.diagnosis",
    "confidence": "weightsmith.merge.diagnosis",
    "confidence_ratio": "weightsmith.merge.diagnosis",
    "diagnose": "weightsmith.merge.diagnosis",
    "diagonal_fisher": "weightsmith.merge.fisher",
    "fisher_average": "weightsmith.merge.fisher",
    "fit_temperature": "weightsmith.merge.temperature",
    "interpolate": "weightsmith.merge.wise_ft",
    "match_activations": "weightsmith.merge.weight_matching",
    "match_straight_through": "weightsmith.merge.weight_matching",
    "match_weights": "weightsmith.merge.weight_matching",
    "merge_folders": "weightsmith.merge.engine",
    "merge_many": "weightsmith.merge.weight_matching",
    "merge_state_dicts": "weightsmith.merge.engine",
    "output_ensemble": "weightsmith.merge.diagnosis",
    "slerp_average": "weightsmith.merge.arithmetic",
    "smooth_targets": "weightsmith.merge.bang",
    "soft_cross_entropy": "weightsmith.merge.bang",
    "transitions": "weightsmith.merge.diagnosis",
    "vote_accuracy": "weightsmith.merge.votes",
    "warmup_cosine": "weightsmith.merge.bang",
}
"""The module of every name offered here, imported when the name is used."""

__all__ = [
    "HEADS",
    "MixupCollator",
    "PermutationSpec",
    "ZeroShotHead",
    "add_tasks",
    "average",
    "balance_logit_scale",
    "bang_loss",
    "calibration_error",
    "confidence",
    "confidence_ratio",
    "diagnose",
    "diagonal_fisher",
    "fisher_average",
    "fit_temperature",
    "interpolate",
    "match_activations",
    "match_straight_through",
    "match_weights",
    "merge_folders",
    "merge_many",
    "merge_state_dicts",
    "output_ensemble",
    "slerp_average",
    "smooth_targets",
    "soft_cross_entropy",
    "transitions",
    "vote_accuracy",
    "warmup_cosine",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
