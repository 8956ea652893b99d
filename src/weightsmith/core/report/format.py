"""Numbers and names as a reader wants them: units, percentages, what got better."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

__all__ = [
    "SPREAD",
    "change",
    "direction",
    "distances",
    "explain",
    "label",
    "length",
    "longest",
    "measures",
    "number",
    "places",
    "printable",
    "show",
    "show_with_spread",
    "tone",
]

BETTER = {
    "perplexity": -1,
    "control_perplexity": -1,
    "loss": -1,
    "error": -1,
    "mean_absolute_error": -1,
    "bytes": -1,
    "nonzero": -1,
    "accuracy": +1,
    "label_accuracy": +1,
    "accuracy_forgotten": -1,
    "accuracy_others": +1,
    "tokens_per_second": +1,
    "normalized_accuracy": +1,
    "exact_match": +1,
    "f1": +1,
    "word_perplexity": -1,
    "byte_perplexity": -1,
    "bits_per_byte": -1,
}
"""Measures whose direction is known: +1 where more is better, -1 where less is."""

NAMES = {
    "accuracy_forgotten": "accuracy, forgotten class",
    "accuracy_others": "accuracy, other classes",
    "centered_alignment": "CKA",
    "cka": "CKA",
    "expected_alignment": "expected KA",
    "f1": "F1",
    "kernel_alignment": "KA",
    "representation_alignment": "RA",
    "sign_agreement": "same sign",
    "membership_auc": "membership AUC",
    "rouge_l_forgotten": "ROUGE-L, forgotten",
    "rouge_l_neither": "ROUGE-L, neither",
    "rouge_l_retained": "ROUGE-L, retained",
    "nonzero": "non-zero weights",
    "bytes": "size",
    "tokens_per_second": "tokens per second",
}
SPREAD = "_spread"
"""What the name of a measure's spread ends with."""

GLOSSARY = {
    "accuracy": "share of samples whose largest logit is their label",
    "activations": "number of activations",
    "active_features": "features above or below zero per activation",
    "after": "relative error of the sampled weights that were kept",
    "agreement": "share of tokens or samples for which the gene and the model choose the same class",
    "annealed_oscillation": "turns per weight and step while the layer is annealed",
    "attention_after": "difference of the layer's attention maps from the helper's, afterwards",
    "attention_before": "difference of the layer's attention maps from the helper's, before",
    "before": "relative error of the layer's own weights",
    "bits": "bits of each of the layer's weights",
    "bytes": "bytes of weights read per token",
    "centered_alignment": "cosine of the centered Gram matrices of the activity, unbiased: linear CKA",
    "changed": "share of the layer's weights that are no longer what they were",
    "channels": "input channels of the layer before",
    "cka": "similarity of the outputs of two seeds",
    "choice": "value of the dimension that was chosen",
    "columns": "inputs of the layer",
    "dead_share": "share of features that are never active",
    "dead_share_after": "share of weights near zero, afterwards",
    "dead_share_before": "share of weights near zero, before",
    "density": "share of weights that are not zero",
    "distance_after": "distance of the two networks' weights after matching",
    "distance_before": "distance of the two networks' weights before matching",
    "divergence": "Kullback-Leibler divergence from the model's outputs",
    "edit_accuracy": "share of prompts predicted as with the counterfactual activations, after an edit of two features",
    "entropy": "entropy of the codes of the layer's weights, in bits",
    "entropy_deficit": "how far the singular values are from all being equal, in nats",
    "expected_alignment": "kernel alignment that two-layer linear theory expects from the weights before",
    "f1": "F1 of the best feature for each value of the attribute, mean over the values",
    "features_per_value": "features whose union tells a value best: more than 1 where it is split",
    "fidelity": "share of the energy of the layer's outputs that the remaining channels reconstruct",
    "fidelity_uncompensated": "the same with the remaining weights unchanged",
    "guided_accuracy": "the same, with the features that stand for the old and the new value",
    "gradient_norm": "mean norm of the gradient of the architecture parameters",
    "id loss": "loss on in-distribution data at this share of the way",
    "hessian_trace": "trace of the loss's Hessian",
    "joint": "whether the weight is one factor of a joint query-key weight, whose product is quantized",
    "kappa": "condition number: the largest singular value over the smallest",
    "kappa_over_mp": "condition number over that of a random matrix of this shape (Marchenko-Pastur)",
    "kept": "whether the sampled weights replaced the layer's own",
    "kept_mass": "share of the curvature that is kept",
    "kept_pairs": "share of the pairs of directions that is kept",
    "kernel_alignment": "cosine of the tangent kernels before and after training: near 1 lazy, near 0 rich",
    "kurtosis_after": "heaviness of the tails of the weights' distribution, afterwards",
    "kurtosis_before": "heaviness of the tails of the weights' distribution, before",
    "logit_difference": "logit of the right answer minus that of the wrong one, with the reconstruction",
    "max_after": "largest magnitude of a weight, afterwards",
    "max_before": "largest magnitude of a weight, before",
    "mode_connectivity": "training error at the ends of a curve minus the farthest along it; below 0: a barrier",
    "moved": "distance from the weights before, relative to their norm",
    "necessity": "how far the logit difference falls to that of the mean activation without the reconstruction",
    "norm": "norm of the layer's update",
    "norms": "whether the norms of the weights' columns count beside the activations",
    "occluded_share": "share of the attribute's values that no feature tells (F1 below 0.5)",
    "ood loss": "loss on out-of-distribution data at this share of the way",
    "oscillation": "how often a weight changes its level back, per weight and step, in the last epoch",
    "output_error": "relative root mean square change of the layer's outputs",
    "pairs": "pairs of output and input channel whose weights changed",
    "predicted_loss": "second-order estimate of the increase of the loss per position, in nats",
    "pulses": "pulses given to the layer's conductances",
    "probability": "softmax of the architecture parameters, at the choice",
    "probability_change": "largest change of a choice's probability during the search",
    "rank": "place in the order of layers",
    "reconstruction_error": "relative error of weights that went through the autoencoder",
    "refreshes": "pairs of conductances that were erased and programmed anew",
    "relative_change": "norm of the change over the norm of the weights",
    "reliable": "whether the singular values are large enough to be told from rounding",
    "remaining": "input channels of the layer afterwards",
    "representation_alignment": "cosine of the Gram matrices of the layer's activity, uncentered",
    "row_error_after": "error of the rows' outputs after the swaps",
    "row_error_before": "error of the rows' outputs before the swaps",
    "saturated": "share of conductances at an end of their range",
    "saturation": "mean accumulator of the weights: what slows down their next steps",
    "shape": "outputs and inputs",
    "sign_agreement": "share of units whose activity is on the same side of zero, for the same samples",
    "signal_to_noise": "singular values above those of a random matrix, over those below",
    "source": "block that this block was made from",
    "sparsity": "share of weights, or of activations, that are zero",
    "stable_rank": "sum of the squared singular values over the largest squared",
    "sufficiency": "share of the logit difference that the reconstruction restores, from that of the mean activation",
    "swaps": "pairs of a pruned and a kept weight that changed places",
    "test_accuracy": "share of right predictions on the test samples",
    "threshold": "score below which an activation is skipped",
    "top_eigenvalue": "eigenvalue of the loss's Hessian with the largest magnitude",
    "top_share_after": "share of the squared norm in the largest weights, afterwards",
    "top_share_before": "share of the squared norm in the largest weights, before",
    "trace_error": "standard error of the trace of the Hessian",
    "train_accuracy": "share of right predictions on the training samples",
    "train_loss": "mean cross-entropy of the training samples",
    "trainable": "weights that were trained, or whether the layer was",
    "unused": "share of weights that no step has updated",
    "variance_explained": "share of the variance of the activations that is reconstructed",
    "weight_change": "Frobenius norm of the change of the weights",
    "weight_error": "norm of the weights' rounding errors over the norm of the weights",
    "weight_removed": "share of the reconstruction that the edit takes away",
    "weights": "number of weights",
}
"""What the columns of the tables of layers hold."""

SHARES = ("accuracy", "sparsity", "density", "share", "fraction")


def label(name: str) -> str:
    """Return a measure's name as words.

    Examples
    --------
    >>> label("tokens_per_second"), label("row_error_before")
    ('tokens per second', 'row error before')
    """
    return NAMES.get(name, name.replace("_", " "))


def printable(text: str) -> str:
    r"""Return a text that UTF-8 can hold: lone surrogates, as of names of files that are not UTF-8, as their codes.

    Examples
    --------
    >>> printable("caf\udce9")
    'caf\\udce9'
    """
    return text.encode(errors="backslashreplace").decode()


def number(value: float) -> float:
    """Return a number to compute with: a whole number beyond those of floats as infinity.

    Examples
    --------
    >>> number(3), number(-(10**400))
    (3, -inf)
    """
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return math.inf if value > 0 else -math.inf
    return value


def longest(values: Iterable[float]) -> float:
    """Return the largest finite magnitude of numbers that are drawn as bars.

    Examples
    --------
    >>> longest([2.0, -3.0, math.inf, math.nan]), longest([])
    (3.0, 0)
    """
    return max((abs(value) for value in map(number, values) if math.isfinite(value)), default=0)


def length(value: float, longest: float) -> float:
    """Return the length of a number's bar in per cent of the longest one; 0 where there is none to draw.

    Examples
    --------
    >>> length(-1.0, 2.0), length(math.inf, 2.0), length(0.0, 0.0)
    (50.0, 0.0, 0.0)
    """
    value = number(value)
    return 100 * (abs(value) / longest) if longest and math.isfinite(value) else 0.0


def show(name: str, value: Any) -> str:
    """Return a measure's value with its unit, as short as it can be read.

    Examples
    --------
    >>> show("sparsity", 0.5), show("bytes", 538_060_032), show("nonzero", 134_515_008), show("seconds", 75.2)
    ('50 %', '538 MB', '134.5 M', '1 min 15 s')
    >>> show("perplexity", 19.7342), show("swaps", 1234), show("layers", ["q", "k"]), show("blocks", None)
    ('19.73', '1,234', 'q, k', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(show(name, item) for item in value) or "none"
    if not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) and math.isinf(number(value)):
        return f"{Decimal(value):.4g}"
    if not math.isfinite(value):
        return str(value)
    if "bytes" in name or name.endswith("_memory"):
        return _scaled(value, ("B", "kB", "MB", "GB", "TB"))
    if name.endswith("seconds"):
        return _duration(value)
    if (name.endswith(SHARES) or name.startswith("accuracy")) and 0 <= value <= 1:
        return f"{100 * value:.3g} %"
    if abs(value) >= 1e6:
        return _scaled(value, ("", "k", "M", "G", "T"), digits=4)
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def explain(name: str) -> str:
    """Return what a column of a table of layers holds; its name in words where that is not known.

    Examples
    --------
    >>> explain("density"), explain("my_own_measure")
    ('share of weights that are not zero', 'my own measure')
    """
    return GLOSSARY.get(name, label(name))


def measures(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of all measures; a spread belongs to its measure."""
    return [name for name in dict.fromkeys([*before, *after]) if not name.endswith(SPREAD)]


def show_with_spread(name: str, values: Mapping[str, Any]) -> str:
    """Return a measure's value and its spread where there is one; nothing where it was not measured.

    Examples
    --------
    >>> show_with_spread("tokens_per_second", {"tokens_per_second": 20.0, "tokens_per_second_spread": 0.5})
    '20 ± 0.5'
    """
    if values.get(name) is None:
        return ""
    spread = values.get(name + SPREAD)
    return show(name, values[name]) + ("" if spread is None else f" ± {show(name, spread)}")


def distances(inputs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return what went into a merge as the rows of a table, the first of them its heading.

    Examples
    --------
    >>> rows = [{"network": "a", "to_result": 0.01, "to_others": [0.0, 0.02]},
    ...         {"network": "b", "to_result": 0.01, "to_others": [0.02, 0.0]}]
    >>> distances(rows)[1:]
    [['1. a', '1 %', '', '2 %'], ['2. b', '1 %', '2 %', '']]
    """
    if not inputs:
        return []
    rows = [["network", "to the result", *(f"to {number}." for number in range(1, len(inputs) + 1))]]
    for place, row in enumerate(inputs):
        others = ["" if at == place else f"{100 * float(d):.3g} %" for at, d in enumerate(row["to_others"])]
        rows.append([f"{place + 1}. {row['network']}", f"{100 * float(row['to_result']):.3g} %", *others])
    return rows


def change(before: float, after: float) -> str:
    """Return the relative change from ``before`` to ``after``: a percentage, or a factor from two on.

    Examples
    --------
    >>> change(20.0, 15.0), change(20.0, 100.0), change(20.0, 20.0), change(0.0, 1.0)
    ('−25 %', '5×', '±0 %', '')
    """
    before, after = number(before), number(after)
    if before == 0 or not (math.isfinite(before) and math.isfinite(after)):
        return ""
    ratio = after / before
    if ratio >= 2:
        return f"{ratio:.3g}×"
    percent = 100 * (ratio - 1)
    if abs(percent) < 0.05:
        return "±0 %"
    return f"{'+' if percent > 0 else '−'}{abs(percent):.3g} %"


def direction(name: str) -> int:
    """Return +1 where more of a measure is better, -1 where less is, 0 where neither is known.

    Examples
    --------
    >>> direction("perplexity"), direction("arc_easy accuracy"), direction("my_own_measure")
    (-1, 1, 0)
    """
    return BETTER.get(name.rpartition(" ")[2], 0)  # the name of a task stands before its measure


def tone(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return ``"better"``, ``"worse"``, or ``"same"`` where the change is within the spread of the two measurements.

    Examples
    --------
    >>> tone("perplexity", {"perplexity": 20.0}, {"perplexity": 30.0})
    'worse'
    >>> before = {"tokens_per_second": 20.0, "tokens_per_second_spread": 1.5}
    >>> [tone("tokens_per_second", before, before | {"tokens_per_second": speed}) for speed in (22.0, 24.0)]
    ['same', 'better']
    """
    first, last = number(before[name]), number(after[name])
    gain = direction(name) * (last - first)
    spread = before.get(name + SPREAD, 0.0) + after.get(name + SPREAD, 0.0)
    if last == first or abs(gain) <= max(5e-4 * abs(first), spread):
        return "same"
    return "better" if gain > 0 else "worse"


def places(layers: Sequence[str]) -> list[tuple[str, int | None]]:
    """Split layers' paths into their kind and their depth.

    The depth is the first number of a path (None where it has none); the kind is the last word, with as many words
    before it as tell the layers of one depth apart.

    Examples
    --------
    >>> places(["layers.0.mlp.up", "layers.1.mlp.up", "head"])
    [('up', 0), ('up', 1), ('head', None)]
    >>> places(["layer.3.attention.dense", "layer.3.output.dense", "layer.3.attention.key"])
    [('attention.dense', 3), ('output.dense', 3), ('key', 3)]
    """
    split = [layer.split(".") for layer in layers]
    numbers = [next((at for at, part in enumerate(parts) if part.isdigit()), None) for parts in split]
    depths = [None if at is None else int(parts[at]) for parts, at in zip(split, numbers, strict=True)]
    words = [
        [part for part in parts[0 if at is None else at :] if not part.isdigit()] or parts
        for parts, at in zip(split, numbers, strict=True)
    ]
    kinds = [parts[-1] for parts in words]
    for length in range(2, max(map(len, words), default=1) + 1):
        counts = Counter(zip(kinds, depths, strict=True))
        clashing = {kind for (kind, _), count in counts.items() if count > 1}
        kinds = [
            ".".join(parts[-length:]) if kind in clashing else kind for kind, parts in zip(kinds, words, strict=True)
        ]
    return list(zip(kinds, depths, strict=True))


def _scaled(value: float, units: tuple[str, ...], digits: int = 3) -> str:
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.{digits}g} {units[power]}".rstrip()


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
