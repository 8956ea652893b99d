"""Remove channels block by block: statistics, choice, compensation, and the cut at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from weightsmith.core.data import Batch, call, to_model, without_labels
from weightsmith.core.errors import CalibrationError, HyperparameterError, UnsupportedModelError
from weightsmith.core.fidelity import second_moments
from weightsmith.core.io import offloaded_of
from weightsmith.core.linalg import upcast
from weightsmith.core.models import (
    CONVOLUTIONS,
    Layer,
    build_empty,
    computed_by,
    evaluation_mode,
    example_batch,
    find_blocks,
    find_matrices,
    has_batchnorm,
    observe,
    recalibrate_batchnorm,
    stream,
    unreached,
    writable,
)
from weightsmith.core.progress import track
from weightsmith.core.results import Result
from weightsmith.core.statistics import Gram
from weightsmith.core.symmetry import find_symmetry, outputs_of
from weightsmith.core.training import restored_on_error
from weightsmith.sparsify._modhifi.channels import Channels, Kept, cut, find_channels, find_fields
from weightsmith.sparsify._modhifi.selection import (
    Consumer,
    Score,
    best,
    channel_scores,
    reconstruct,
    warn_of_few_rows,
)

__all__ = ["Pruning", "rounded"]

EXPERT_MULTIPLE = 8
"""The kernels that multiply all experts at once need rows of a multiple of 16 bytes."""

TOLERANCE = 1e-2
"""Largest relative difference of the outputs with channels masked and cut."""


class Pruning:
    """One removal of channels from one model.

    Parameters
    ----------
    model : nn.Module
        The model.
    batches : sequence of Batch
        Calibration data.
    result : Result
        Receives rows, notes and totals.
    score, compensation, skip_tokens, generator
        As for :func:`modhifi`.

    Attributes
    ----------
    channels : list of Channels
        What is removed from.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        result: Result,
        score: Score,
        compensation: str,
        skip_tokens: int,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.result, self.stored = model, result, offloaded_of(model)
        self.batches = [without_labels(model, b) if isinstance(b, Mapping) else b for b in batches]
        self.score, self.compensation, self.generator = score, compensation, generator
        self.skip_tokens = skip_tokens
        self.channels: list[Channels] = []
        self.kept: Kept = {}
        self.removed: dict[str, Bool[Tensor, "in"]] = {}
        self.energies: dict[str, float] = {}
        self.parameters = _parameters(model)

    # --- what can be removed

    def prepare(
        self, include: str | Sequence[str], exclude: str | Sequence[str], scope: str, ratio: float, multiple_of: int
    ) -> None:
        """Find the channels and fields of the configuration, and try the cut; the model does not change."""
        if isinstance(self.model, PreTrainedModel) and self.stored is not None:
            self.first: Batch = example_batch(self.model)  # the stream refuses a batch that does not fit
        else:
            observe(self.model, self.batches[:1], (), Gram)  # a batch that does not fit is refused by name
            self.first = to_model(self.batches[0], self.model)
        self.symmetry = find_symmetry(self.model, self.first, verify=False)
        found, reasons = find_channels(self.model, self.symmetry)
        names = {layer.name for layer in find_matrices(self.model, include, exclude)}
        included = [c for c in found if all(layer.name in names for layer in c.consumers)]
        self.sizes = {c.name: _stay(c, ratio, multiple_of) for c in included}
        wanted = [c for c in included if self.sizes[c.name] < c.size]
        self.whole = [c for c in included if self.sizes[c.name] == c.size]
        self.channels, self.fields, unsaid = find_fields(self.model, wanted, self.sizes)
        reasons = dict.fromkeys(unsaid, "has a size that no field of the configuration says by itself") | reasons
        paths = {path for path, module in self.model.named_modules() for owner, *_ in self.fields if module is owner}
        said = {c.name for c in self.channels for path in paths if c.name.startswith(f"{path}." if path else "")}
        if said and scope == "global":
            do = "Use scope='layer'."
            raise HyperparameterError("scope", found="global: a configuration has one width for all layers", do=do)
        self.plain = [c for c in self.channels if c.name not in said]
        self._leave_out_what_cannot_run(reasons)
        writable(layer for c in self.channels for layer in c.consumers)
        if self.skip_tokens and any(c.stacked for c in self.channels):
            raise HyperparameterError("skip_tokens", found=self.skip_tokens, expected="0 for a mixture of experts")
        if not self.channels and (wanted or not included):
            name, reason = next(iter(reasons.items()), ("the model", "has none between layers that match"))
            raise UnsupportedModelError(f"no channels can be removed: {name!r} {reason}")
        if ratio and all(_stay(c, ratio, 0) == c.size for c in included):
            widest = max(c.size for c in included)
            raise HyperparameterError(
                "ratio",
                found=f"{ratio}, which removes none of the {widest} channels of the widest layer that can be cut",
                expected=f"at least {1 / widest:.2g}",
                do="Raise it, or see with a higher one which layers cannot be cut.",
            )
        if self.stored is not None:
            self._check_stored()
        self._note(reasons)

    def _check_stored(self) -> None:
        """Refuse channels of a model on disk that cannot be cut block by block."""
        blocks = find_blocks(self.model)
        for c in self.channels:
            if c in self.plain or not any(all(key.startswith(f"{b}.") for key, _ in c.members) for b in blocks):
                raise UnsupportedModelError(
                    f"channels {c.name!r} are not inside one block of the model on disk",
                    found=f"members {[key for key, _ in c.members][:4]}",
                    do="Load it whole, without --stream, or leave their layers out with exclude.",
                )

    def _leave_out_what_cannot_run(self, reasons: dict[str, str]) -> None:
        """Cut channels that no configuration proves removable on trial, and leave out those that cannot run."""

        def error_of(channels: Sequence[Channels]) -> str:
            kept = {c.name: torch.arange(self.sizes[c.name]) for c in channels}
            try:
                with restored_on_error(self.model, values=False):
                    cut(self.model, self.symmetry, kept)
                    self._outputs()
                    raise _Undone
            except _Undone:
                return ""
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                return str(error).partition("\n")[0]

        if self.plain and error_of(self.plain):
            errors = {c.name: error_of([c]) for c in self.plain}
            reasons |= {name: f"cannot change its size: {error}" for name, error in errors.items() if error}
            self.plain = [c for c in self.plain if not errors[c.name]]
            self.channels = [c for c in self.channels if not errors.get(c.name)]

    def _note(self, reasons: Mapping[str, str]) -> None:
        touched = {key for c in self.channels for key, _ in c.members}
        layers = find_matrices(self.model)
        reached = [layer for layer in layers if _key(layer) in touched]
        self.result.notes += unreached(self.model, reached)
        if computed := [layer.name for layer in layers if computed_by(layer.module, layer.parameter)]:
            self.result.notes.append(f"Unchanged, as their weights are computed: {', '.join(computed)}.")
        if reasons:
            listed = [f"{name!r} {reason}" for name, reason in reasons.items()]
            more = f", and {len(listed) - 5} more" if len(listed) > 5 else ""
            self.result.notes.append(f"Channels that stay: {'; '.join(listed[:5])}{more}.")

    # --- statistics and scores

    def scores(self) -> dict[str, Float[Tensor, "channels"]]:
        """Return the scores of all plain channels in the dense network, normalized per layer."""
        found: dict[str, Tensor] = {}
        for channels, grams in self._visits():
            for c in channels:
                if consumers := self._consumers(c.consumers, c, grams):
                    scores_C = channel_scores([*consumers.values()], self.score, generator=self.generator)
                    found[c.name] = scores_C / len(consumers)
        if missing := [c.name for c in self.channels if c.name not in found]:
            raise CalibrationError(f"no calibration batch reached the layers that read {missing[0]!r}")
        return found

    def _visits(self) -> Iterator[tuple[list[Channels], dict[str, Gram]]]:
        """Yield groups of channels with the statistics of the layers that read them.

        Channels that several blocks read come first, from the network as it is. The others follow block by block, and
        at the end those that no batch reached, without statistics.
        """
        blocks = {child: name for name, block in find_blocks(self.model).items() for child in block.modules()}
        places = {c.name: {blocks.get(layer.module) for layer in c.consumers} for c in self.channels}
        wide = [c for c in self.channels if len(places[c.name]) > 1 or None in places[c.name]]
        if wide:
            yield wide, observe(self.model, self.batches, _layers(wide), self._gram)
        rest = [c for c in self.channels if c not in wide]
        if rest:
            names = [layer.name for layer in _layers(rest)]
            visited = stream(self.model, self.batches, include=names)
            for block in track(visited, "blocks", total=len({place for c in rest for place in places[c.name]})):
                own = [c for c in rest if places[c.name] == {block.name}]
                rest = [c for c in rest if c not in own]
                wanted = {layer.name for layer in _layers(own)}
                grams = block.observe([layer for layer in block.layers if layer.name in wanted], self._gram)
                yield own, grams
                grams.clear()  # before those of the next block
        if rest:
            for block in stream(self.model, None, include=[layer.name for layer in _layers(rest)]):
                yield [c for c in rest if places[c.name] == {block.name}], {}

    def _gram(self, layer: Layer) -> Gram:
        return _LaterRows(layer, self.skip_tokens) if self.skip_tokens else Gram(layer)

    def _centered(self, layer: Layer) -> bool:
        """Whether the mean of the outputs can be restored: by the layer's bias, or by a batch normalization."""
        return layer.bias is not None or (isinstance(layer.module, CONVOLUTIONS) and has_batchnorm(self.model))

    def _consumers(self, layers: Sequence[Layer], c: Channels, grams: Mapping[str, Gram]) -> dict[str, Consumer]:
        """Of the layers that a batch reached, by name."""
        return {
            layer.name: Consumer(
                upcast(layer.weight_OI),
                self._moments(layer, grams[layer.name]),
                c.columns[layer.name].to(layer.weight.device),
            )
            for layer in layers
            if layer.name in grams
        }

    def _moments(self, layer: Layer, gram: Gram) -> Float[Tensor, "in in"]:
        return second_moments(gram, center=self._centered(layer)).to(upcast(layer.weight_OI).dtype)

    # --- choice and compensation

    def prune(self, counts: Mapping[str, int]) -> None:
        """Choose, mask and compensate block by block, then cut; ``counts`` replaces the numbers to keep."""
        self.sizes |= counts
        if self.stored is not None:
            for _, _, smaller in self._new_fields():
                self.stored.resize(smaller)
        for channels, grams in self._visits():
            for c in channels:
                self.kept[c.name] = self._choose(c, grams)
            for layer in _layers(channels):
                self._rewrite(layer, grams, channels)
            if self.stored is not None:  # the stream writes the block when it leaves it
                cut(self.model, self.symmetry, {c.name: self.kept[c.name] for c in channels})
        self._cut()
        if has_batchnorm(self.model):
            self.result.totals["batchnorm_layers"] = recalibrate_batchnorm(self.model, self.batches)

    def _choose(self, c: Channels, grams: Mapping[str, Gram]) -> Int[Tensor, "..."]:
        keep = self.sizes[c.name]
        if c.stacked:
            return torch.stack([self._choose_for([layer], c, grams, keep) for layer in c.consumers])
        return self._choose_for(c.consumers, c, grams, keep)

    def _choose_for(
        self, layers: Sequence[Layer], c: Channels, grams: Mapping[str, Gram], keep: int
    ) -> Int[Tensor, "keep"]:
        reached, score = self._consumers(layers, c, grams), self.score
        self.energies |= {name: float(consumer.sums[2]) for name, consumer in reached.items()}
        consumers = [*reached.values()]
        if not consumers:
            self.result.notes.append(f"No calibration token reached {layers[0].name!r}: its largest weights stay.")
            consumers, score = [_without_moments(layer, c) for layer in layers], "l2"
        return best(channel_scores(consumers, score, count=keep, generator=self.generator), keep).cpu()

    @torch.no_grad()
    def _rewrite(self, layer: Layer, grams: dict[str, Gram], channels: Sequence[Channels]) -> None:
        """Set the columns of removed channels to zero, and re-solve the others; takes the layer's statistics away."""
        old_OI = upcast(layer.weight_OI)
        gone_I = self.removed.setdefault(layer.name, torch.zeros(old_OI.shape[1], dtype=torch.bool))
        own = [c for c in channels if layer.name in c.columns]
        for c in own:
            row = [other.name for other in c.consumers].index(layer.name) if c.stacked else 0
            stays = torch.zeros(c.size, dtype=torch.bool)
            stays[self.kept[c.name].view(-1, self.kept[c.name].shape[-1])[row]] = True
            gone_I[c.columns[layer.name][~stays].flatten()] = True
        new_OI: Tensor | None = None
        measures: dict[str, float] = {}
        gram = grams.pop(layer.name, None)
        if gram is not None:
            kept_K = (~gone_I).nonzero().flatten().to(old_OI.device)
            self.result.notes += warn_of_few_rows(layer.name, gram.rows, len(kept_K))
            moment_II = self._moments(layer, gram)
            gone_K = gone_I.nonzero().flatten()
            energy, lost = self.energies[layer.name], _energy(old_OI[:, gone_K], moment_II[gone_K[:, None], gone_K])
            measures["fidelity_uncompensated"] = 1 - lost / energy if energy else 0.0
            if self.compensation == "ols":
                new_OI, gain = reconstruct(old_OI, moment_II.clone() if gram in grams.values() else moment_II, kept_K)
                lost = max(lost - gain, 0.0)
                if layer.bias is not None:
                    layer.bias.add_(((old_OI - new_OI) @ gram.mean_I.to(old_OI)).to(layer.bias))
            measures["fidelity"] = 1 - lost / energy if energy else 0.0
        layer.write(old_OI.masked_fill(gone_I.to(old_OI.device), 0) if new_OI is None else new_OI)
        counts = {"channels": sum(c.size for c in own), "remaining": sum(self.kept[c.name].shape[-1] for c in own)}
        self.result.layer(layer.name, **counts, **measures)

    # --- surgery

    def _cut(self) -> None:
        masked = self._outputs() if self.plain else []
        if self.stored is None:
            cut(self.model, self.symmetry, self.kept)
        for owner, fields, smaller in self._new_fields():
            old = build_empty(owner, {})
            for name, value in fields.items():
                setattr(owner.config, name, value)
            _set_sizes(owner, old, smaller)
        for before, after in zip(masked, self._outputs() if self.plain else [], strict=True):
            gap = float((before - after).abs().max() / before.abs().max().clamp(min=1e-12))
            if not gap <= TOLERANCE:
                raise UnsupportedModelError(
                    "an operation of the model averages over channels that were to be removed",
                    found=f"outputs that differ by {gap:.1%} when channels of value 0 are cut",
                    do="Leave the layers that read them out with exclude.",
                )

    def _new_fields(self) -> Iterator[tuple[PreTrainedModel, dict[str, int], PreTrainedModel]]:
        """Each model whose configuration changes, with the new values and, without memory, the model they describe."""
        for owner in dict.fromkeys(owner for owner, *_ in self.fields):
            fields = {name: value for other, name, value in self.fields if other is owner}
            smaller = build_empty(owner, fields)
            if isinstance(smaller, str):
                raise UnsupportedModelError(f"{type(owner.config).__name__} does not take {fields}", found=smaller)
            yield owner, fields, smaller

    @torch.no_grad()
    def _outputs(self) -> list[Tensor]:
        with evaluation_mode(self.model):
            out = call(self.model, self.first)
        return [tensor.float() for tensor in outputs_of(out) if tensor.is_floating_point() and tensor.numel()]

    def summarize(self) -> None:
        """Compute the totals from the rows."""
        totals, rows = self.result.totals, self.result.layers
        totals["layers"] = len(rows)
        totals["channels"] = sum(c.size * _choices(c) for c in self.channels)
        totals["remaining"] = sum(self.kept[c.name].numel() for c in self.channels)
        for measure in ("fidelity_uncompensated", "fidelity"):
            if values := [row[measure] for row in rows if measure in row]:
                totals[measure] = sum(values) / len(values)
        totals["parameters"] = _parameters(self.model)
        totals["removed"] = 1 - totals["parameters"] / max(self.parameters, 1)
        odd = [
            c for c in [*self.whole, *self.channels] if self.sizes[c.name] != _stay(c, self.result.hyper["ratio"], 0)
        ]
        if odd and self.result.hyper["scope"] == "layer":
            widths = {c.size: self.sizes[c.name] for c in odd}
            listed = ", ".join(f"{kept} of {size}" for size, kept in widths.items())
            self.result.notes.append(f"The number of channels was rounded to a multiple: {listed} stay.")


def rounded(kept: int, size: int, multiple_of: int) -> int:
    """Return the nearest multiple, at least one and at most ``size``.

    Examples
    --------
    >>> rounded(51, 64, 8), rounded(0, 64, 1), rounded(63, 64, 16)
    (48, 1, 64)
    """
    return min(max(round(kept / multiple_of), 1) * multiple_of, size)


def _stay(c: Channels, ratio: float, multiple_of: int) -> int:
    """How many channels stay; a multiple of 0 is the exact number."""
    exact = c.size - round(ratio * c.size)
    if not ratio or not multiple_of:
        return exact
    return rounded(exact, c.size, math.lcm(multiple_of, EXPERT_MULTIPLE) if c.stacked else multiple_of)


class _Undone(Exception):
    """Ends a cut on trial."""


class _LaterRows(Gram):
    """A Gram matrix without the first rows of every sequence."""

    def __init__(self, layer: Layer, skip: int) -> None:
        super().__init__(layer)
        self.skip = skip

    def update(self, x_SNI: Float[Tensor, "S N I"], mask_SN: Bool[Tensor, "S N"] | None = None) -> None:
        """Take in the input rows of one batch."""
        keep_SN = torch.ones(x_SNI.shape[:2], dtype=torch.bool, device=x_SNI.device) if mask_SN is None else mask_SN
        late_SN = keep_SN & (keep_SN.cumsum(1) > self.skip)
        super().update(x_SNI, late_SN)


def _layers(channels: Sequence[Channels]) -> list[Layer]:
    return list({layer.name: layer for c in channels for layer in c.consumers}.values())


def _key(layer: Layer) -> str:
    owner = layer.name if layer.expert is None else layer.name.rsplit(f".{layer.expert}.", 1)[0]
    return f"{owner}.{layer.parameter}".lstrip(".")


def _choices(c: Channels) -> int:
    return len(c.consumers) if c.stacked else 1


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _energy(weight_OI: Float[Tensor, "out in"], moment_II: Float[Tensor, "in in"]) -> float:
    """The mean squared norm of a matrix's outputs."""
    return max(float(torch.linalg.vecdot(weight_OI @ moment_II, weight_OI).double().sum()), 0.0)


def _set_sizes(model: nn.Module, old: Any, new: Any) -> None:
    """Set the numbers in a model's modules that follow from the configuration."""
    before, after = dict(old.named_modules()), dict(new.named_modules())
    for name, module in model.named_modules():
        if name in before and name in after:
            for attribute, value in vars(after[name]).items():
                had = vars(before[name]).get(attribute)
                if type(value) is int and had != value and vars(module).get(attribute) == had:
                    setattr(module, attribute, value)


def _without_moments(layer: Layer, c: Channels) -> Consumer:
    weight_OI = upcast(layer.weight_OI)
    alike_II = torch.eye(weight_OI.shape[1]).to(weight_OI)
    return Consumer(weight_OI, alike_II, c.columns[layer.name].to(weight_OI.device))
