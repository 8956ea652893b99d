r"""Make a classifier forget one class: remove the weights that carry it, found by forward passes on its samples alone.

The second half of Kashyap, Murti, Nayak, Narshana, Bhattacharyya, "ModHiFi: Identifying High Fidelity predictive
components for Model Modification", 2025, arXiv 2511.19566. With the second moments :math:`S` of a layer's inputs over
samples of the class, a pair of output :math:`c` and input channel :math:`i` has the saliency

.. math:: R_{ci} = E\langle Y_c, A_{ci} \rangle = w_{ci} (S w_c)_i .

The weights of the pairs with the highest saliency are set to zero, or their signs are reversed.

Legend: ``O`` outputs, ``I`` inputs (columns of the weight), ``C`` channels, ``B`` columns of one, ``P`` pairs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightsmith.core.choices import check_choice
from weightsmith.core.data import IGNORED, Batch, Samples, batched, pad_token_id, take, to_model, without_labels
from weightsmith.core.errors import CalibrationError, HyperparameterError, LayerNotFoundError, UnsupportedModelError
from weightsmith.core.fidelity import PairScore, pair_scores, second_moments
from weightsmith.core.io import offloaded_of
from weightsmith.core.linalg import upcast
from weightsmith.core.models import Layer, computed_by, evaluation_mode, find_layers, observe, unreached, writable
from weightsmith.core.processes import refuse_several_processes
from weightsmith.core.results import Result, record
from weightsmith.core.statistics import Gram, InputStatistics
from weightsmith.core.training import check_finite, predict, refuse_adapters, restored_on_error

__all__ = ["classwise"]

Mode = Literal["auto", "zero", "negate"]

DEEPEST = 12
"""Layers, counted from the output, that the automatic choice may take: as many as the paper edits in VGG-19."""

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of pairs that the automatic choice tries; the paper's range."""

FORGOTTEN = 0.05
"""The class counts as forgotten when its samples are recognized no more often."""

FEW = 20
"""Samples of the class below which its accuracy is no more than a hint."""


LISTED = 20
"""Classes whose accuracy is listed before and after; of more, those that lose most."""

NORMS = ("LayerNorm", "RMSNorm")


def classwise(
    model: nn.Module,
    images: Samples,
    *,
    class_name: str,
    fraction: float | None = None,
    layers: int | None = None,
    score: PairScore = "saliency",
    mode: Mode = "auto",
    batch_size: int = 32,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> Result:
    """Make a classifier forget one class, without gradients (ModHiFi-U).

    Only samples of the class decide what changes. Samples of the other classes are measured before and after, so that
    the damage to them is seen.

    Parameters
    ----------
    model : nn.Module
        A classifier, changed in place.
    images : sequence of samples
        Labeled samples of the class, and of the others: mappings with ``labels``, or pairs (input, class). Samples
        labeled -100 are left out. Half of the class's samples find the weights, the other half measures what is left
        of it.
    class_name : str
        The class to forget: its name in the configuration of the model, or its number.
    fraction : float, optional
        Share of a layer's pairs of output and input channel that change, in (0, 1].
    layers : int, optional
        How many layers change, counted from the output. By default the fewest layers, and of them the lowest of the
        fractions from 0.01 to 0.2, with which the class is no longer recognized; 12 layers at most.
    score : {"saliency", "fidelity"}, default: "saliency"
        Score of a pair: its share of the output's energy, or its squared correlation with it.
    mode : {"auto", "zero", "negate"}, default: "auto"
        Whether weights become zero or change their sign; ``"auto"`` negates in networks with layer normalization, which
        rescales what zeros take away.
    batch_size : int, default: 32
        Samples per forward pass.
    include, exclude : str or sequence of str
        Shell patterns on layer names.

    Returns
    -------
    Result
        Per changed layer its ``pairs`` and the share ``changed``; ``before`` and ``after`` hold the accuracy on the
        forgotten class, on the others, and on each.

    Raises
    ------
    CalibrationError
        If there are no samples of the class, or samples have not one class each.
    HyperparameterError
        If an option is out of range, or there is no such class.
    LayerNotFoundError
        If no layer matches.
    NonFiniteError
        If weights or activations hold NaN or infinity.
    UnsupportedModelError
        If the model is no classifier, has adapters, or its weights are computed or quantized.

    Warns
    -----
    UserWarning
        If weights are set to zero in a network with layer normalization.

    References
    ----------
    Kashyap, Murti, Nayak, Narshana, Bhattacharyya, "ModHiFi: Identifying High Fidelity predictive components for Model
    Modification", arXiv 2511.19566.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> data = [(torch.randn(2) + 3 * (n % 2), torch.tensor(n % 2)) for n in range(40)]
    >>> result = classwise(model, data, class_name="1", fraction=0.2, layers=1)
    >>> result.layers[0]["layer"], result.layers[0]["pairs"]
    ('2', 6)
    """
    _check(fraction, layers, score, mode, batch_size)
    class_name = str(class_name)  # Python callers write numbers as numbers
    hyper: dict[str, Any] = {"fraction": fraction, "layers": layers, "score": score, "mode": mode}
    hyper |= {"include": include, "exclude": exclude}
    with record("classwise", class_name=class_name, batch_size=batch_size, **hyper) as result:
        if offloaded_of(model) is not None:
            raise UnsupportedModelError("a model on disk cannot be measured per class", do="Load it whole.")
        refuse_several_processes("how many layers change is decided on a process's own samples", do="Run one process.")
        refuse_adapters(model)
        check_finite(model)
        with restored_on_error(model):
            _Forgetting(model, images, class_name, batch_size, result).run(hyper)
    return result


def _check(fraction: float | None, layers: int | None, score: str, mode: str, batch_size: int) -> None:
    if fraction is not None and not 0 < fraction <= 1:
        raise HyperparameterError("fraction", found=fraction, expected="0 < fraction <= 1")
    if layers is not None and layers < 1:
        raise HyperparameterError("layers", found=layers, expected=">= 1")
    check_choice("score", score, PairScore)
    check_choice("mode", mode, Mode)
    if batch_size < 1:
        raise HyperparameterError("batch_size", found=batch_size, expected=">= 1")


class _Forgetting:
    """One class, one model, and the samples of both kinds as batches."""

    def __init__(self, model: nn.Module, images: Samples, class_name: str, batch_size: int, result: Result) -> None:
        self.model, self.result, self.batch_size = model, result, batch_size
        labels_N = _labels(images)
        self.target, self.name = _find_class(model, class_name)
        own = (labels_N == self.target).nonzero().flatten().tolist()
        if not own:
            found = f"classes {sorted({*labels_N.tolist()} - {IGNORED})[:10]}"
            do = "Read more samples (--images-samples), or name a class that is there."
            raise CalibrationError(f"no samples of class {self.name!r} among {len(labels_N)}", found=found, do=do)
        rest = ((labels_N != self.target) & (labels_N != IGNORED)).nonzero().flatten().tolist()
        self.scored = self._batches([images[n] for n in own[::2]])
        self.measured = self._batches([images[n] for n in own[1::2] or own])
        self.others = self._batches([images[n] for n in rest]) if rest else []

    def _batches(self, samples: Sequence[Any]) -> list[Batch]:
        batches = batched(samples, self.batch_size, pad_token_id=pad_token_id(self.model))
        return [to_model(batch, self.model) for batch in batches]

    def run(self, hyper: Mapping[str, Any]) -> None:
        """Score, change and measure."""
        before = self._accuracies()
        candidates = self._candidates(hyper["include"], hyper["exclude"], hyper["layers"])
        inputs = [without_labels(self.model, batch) for batch in self.scored]
        grams = observe(self.model, inputs, candidates, Gram)
        orders = {layer.name: _pair_order(layer, grams[layer.name], hyper["score"]) for layer in candidates}
        sign = self._sign(hyper["mode"])
        fractions = FRACTIONS if hyper["fraction"] is None else (hyper["fraction"],)
        counts = range(1, len(candidates) + 1) if hyper["layers"] is None else (hyper["layers"],)
        count, fraction = self._search(candidates, orders, sign, [(n, f) for n in counts for f in fractions])
        changed = candidates[:count]
        for layer in reversed(changed):
            self.result.layer(layer.name, **_change(layer, orders[layer.name], sign, fraction))
        after = self._accuracies()
        self._report(before, after)
        pairs = sum(row["pairs"] for row in self.result.layers)
        self.result.totals |= {"layers": count, "fraction": fraction, "pairs": pairs}
        self.result.hyper["mode"] = "negate" if sign else "zero"
        every, chosen = find_layers(self.model), {layer.name for layer in changed}
        if kinds := sorted({layer.name.rpartition(".")[2] for layer in every if layer.name not in chosen}):
            self.result.notes.append(f"Layers that were not chosen stay unchanged: {', '.join(kinds)}.")
        self.result.notes += unreached(self.model, every)

    def _candidates(self, include: str | Sequence[str], exclude: str | Sequence[str], count: int | None) -> list[Layer]:
        """The layers that may change, from the output backwards."""
        found = find_layers(self.model, include, exclude)
        if computed := [layer.name for layer in found if computed_by(layer.module, layer.parameter)]:
            self.result.notes.append(f"Unchanged, as their weights are computed: {', '.join(computed)}.")
        usable = [layer for layer in found if layer.name not in computed]
        writable(usable)
        first = without_labels(self.model, self.scored[0])
        reached = observe(self.model, [first], usable, InputStatistics)  # in the order of the forward pass
        order = {name: place for place, name in enumerate(reached)}
        deepest = sorted((layer for layer in usable if layer.name in order), key=lambda layer: -order[layer.name])
        if not deepest:
            raise LayerNotFoundError("the samples reach no layer that can change", found=f"{len(found)} layers")
        if count is not None and count > len(deepest):
            raise HyperparameterError("layers", found=count, expected=f"1 to {len(deepest)}")
        return deepest[: count or DEEPEST]

    def _sign(self, mode: str) -> float:
        """What the chosen weights are multiplied by."""
        norms = [name for name, module in self.model.named_modules() if type(module).__name__.endswith(NORMS)]
        if norms and mode == "zero":
            warnings.warn(f"{norms[0]!r} rescales what zeros take away: mode='negate' forgets more", stacklevel=5)
        return -1.0 if mode == "negate" or (mode == "auto" and norms) else 0.0

    @torch.no_grad()
    def _search(
        self,
        candidates: Sequence[Layer],
        orders: Mapping[str, Int[Tensor, "pairs"]],
        sign: float,
        choices: Sequence[tuple[int, float]],
    ) -> tuple[int, float]:
        """The first choice of layers and fraction that makes the class unrecognized, or that which comes nearest."""
        if len(choices) == 1:
            return choices[0]
        kept = [layer.weight_OI.clone() for layer in candidates]
        tried = []
        for count, fraction in choices:
            for layer in candidates[:count]:
                _change(layer, orders[layer.name], sign, fraction)
            tried.append((*self._recognized(), count, fraction))
            for layer, weight_OI in zip(candidates[:count], kept, strict=False):
                layer.write(weight_OI)
            if tried[-1][0] <= FORGOTTEN:
                break
        self.result.curves["accuracy on the class, by choice tried"] = [share for share, *_ in tried]
        *_, count, fraction = tried[-1] if tried[-1][0] <= FORGOTTEN else min(tried)
        return count, fraction

    def _recognized(self) -> tuple[float, float]:
        """On the samples that find the weights: the accuracy, and the mean margin of the class over the best other."""
        hits, margins = [], []
        for logits_NC, _ in self._predictions(self.scored):
            others_NC = logits_NC.clone()
            others_NC[:, self.target] = -math.inf
            hits.append((logits_NC.argmax(1) == self.target).double())
            margins.append((logits_NC[:, self.target] - others_NC.amax(1)).double())
        return float(torch.cat(hits).mean()), float(torch.cat(margins).mean())

    def _accuracies(self) -> dict[int, tuple[int, int]]:
        """By class: correct predictions and samples."""
        found: dict[int, tuple[int, int]] = {}
        for logits_NC, labels_N in self._predictions([*self.measured, *self.others]):
            hits_N = logits_NC.argmax(1) == labels_N
            for label in set(labels_N.tolist()):
                right, count = found.get(label, (0, 0))
                mine_N = labels_N == label
                found[label] = right + int(hits_N[mine_N].sum()), count + int(mine_N.sum())
        return found

    @torch.no_grad()
    def _predictions(self, batches: Sequence[Batch]) -> list[tuple[Float[Tensor, "N classes"], Int[Tensor, "N"]]]:
        with evaluation_mode(self.model):
            pairs = [predict(self.model, batch) for batch in batches]
        for logits, labels in pairs:
            known = not labels.numel() or 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]
            if logits.ndim != 2 or not 0 <= self.target < logits.shape[1] or not known:
                found = f"outputs {tuple(logits.shape)} for class {self.target}"
                raise UnsupportedModelError("the model is no classifier of these classes", found=found)
        return [(logits.float(), labels) for logits, labels in pairs]

    def _report(self, before: Mapping[int, tuple[int, int]], after: Mapping[int, tuple[int, int]]) -> None:
        """Fill in the accuracies of the class, of the others together, and of each; say what was lost."""
        shares = [{label: right / count for label, (right, count) in found.items()} for found in (before, after)]
        others = [label for label in before if label != self.target]
        lost = {label: shares[0][label] - shares[1][label] for label in others}
        listed = sorted(sorted(others, key=lambda label: -lost[label])[:LISTED])
        for share, counts, into in zip(shares, (before, after), (self.result.before, self.result.after), strict=True):
            into["accuracy_forgotten"] = share[self.target]
            if others:
                into["accuracy_others"] = sum(counts[n][0] for n in others) / sum(counts[n][1] for n in others)
            into |= {f"accuracy of {_class_name(self.model, label)}": share[label] for label in listed}
        notes = self.result.notes
        if (count := before[self.target][1]) < FEW:
            notes.append(
                f"Only {count} samples of class {self.name!r} measure its accuracy: give more (--images-samples)."
            )
        gone, left = (share[self.target] for share in shares)
        if left > 0.5 * gone or gone == 0:
            notes.append(f"Class {self.name!r} is not forgotten: accuracy {gone:.1%} before, {left:.1%} after.")
        if others and max(lost[label] for label in others) <= 0:
            notes.append("No other class is recognized less often than before.")
        elif others:
            worst = max(others, key=lambda label: lost[label])
            notes.append(
                f"Of the other classes {_class_name(self.model, worst)!r} loses most: accuracy {shares[0][worst]:.1%} "
                f"before, {shares[1][worst]:.1%} after; all together {self.result.before['accuracy_others']:.1%} and "
                f"{self.result.after['accuracy_others']:.1%}."
            )
        else:
            notes.append("There were no samples of other classes: the damage to them was not measured.")


def _labels(images: Samples) -> Int[Tensor, "N"]:
    """The class of every sample."""
    labels: list[Any] = [s.get("labels") if isinstance(s, Mapping) else s[-1] for s in take(images)]
    wrong = [label for label in labels if label is None or torch.as_tensor(label).numel() != 1 or float(label) % 1]
    if wrong or not labels:
        found = f"labels such as {wrong[0]!r}" if wrong else "no samples"
        raise CalibrationError("samples to measure classes on", found=found, expected="one class per sample")
    return torch.tensor([int(label) for label in labels])


def _find_class(model: nn.Module, class_name: str) -> tuple[int, str]:
    """The number of a class, and its name."""
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    numbers = {str(name): int(number) for number, name in names.items()}
    if class_name in numbers:
        return numbers[class_name], class_name
    if class_name.isdecimal() and (not names or int(class_name) in numbers.values()):
        return int(class_name), _class_name(model, int(class_name))
    expected = f"one of {list(numbers)[:10]}" if numbers else "a number: the model has no names of classes"
    raise HyperparameterError("class_name", found=class_name, expected=expected)


def _class_name(model: nn.Module, number: int) -> str:
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    return str(names.get(number, number))


def _width(layer: Layer) -> int:
    """Columns of the weight per input channel: the values of a kernel."""
    return math.prod(getattr(layer.module, "kernel_size", ()) or (1,))


def _pair_order(layer: Layer, gram: Gram, score: PairScore) -> Int[Tensor, "pairs"]:
    """The pairs of output and input channel of a layer, highest score first."""
    weight_OI = upcast(layer.weight_OI)
    columns_CB = torch.arange(weight_OI.shape[1], device=weight_OI.device).view(-1, _width(layer))
    score_OC = pair_scores(weight_OI, second_moments(gram).to(weight_OI), columns_CB, score=score)
    return score_OC.flatten().sort(descending=True, stable=True).indices


@torch.no_grad()
def _change(layer: Layer, order: Int[Tensor, "pairs"], sign: float, fraction: float) -> dict[str, float]:
    """Multiply the weights of the first pairs; return how many, and their share."""
    count = max(1, round(fraction * len(order)))
    factor_P = torch.ones(len(order), dtype=layer.weight_OI.dtype, device=order.device)
    factor_P[order[:count]] = sign
    factor_OI = factor_P.view(len(layer.weight_OI), -1).repeat_interleave(_width(layer), dim=1)
    layer.weight.detach().mul_(layer.like_weight(factor_OI))
    return {"pairs": count, "changed": count / len(order)}
