"""The measures of the evaluation, for what knows the attributes and for what does not, in the same forward passes.

Legend: ``P`` prompts, ``D`` features of a site, ``J`` features of a dictionary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightsmith.analyze._sae_eval.codes import AttributeCodes
from weightsmith.analyze._sae_eval.dictionaries import Dictionary
from weightsmith.analyze._sae_eval.edits import Latents, feature_weights, guided_edits, sparse_edits
from weightsmith.analyze._sae_eval.sites import PatchedRuns, Site, collect_activations
from weightsmith.analyze._sae_eval.task import AttributeTask, Prompts
from weightsmith.core.errors import CalibrationError
from weightsmith.core.progress import track

__all__ = ["Arm", "CodesArm", "DictionaryArm", "MeanArm", "Tally", "measure", "mediated_attributes"]

Activations = Mapping[Site, Float[Tensor, "P _"]]
Edits = dict[str, tuple[Float[Tensor, "P D"], Float[Tensor, " P"]]]
"""By name what is added to the activations, and which share of the clean reconstruction is removed."""

LEAST_DIFFERENCE = 0.05
"""Of the logit differences of clean and mean activations; below it a site has nothing to do with the task."""

MEDIATED = 0.5
"""Share of predictions that a counterfactual must change for its attribute to be edited at a site."""


ENOUGH = 64
"""Prompts after which sites and attributes that the task does not need are given up."""


@dataclass(frozen=True)
class Change:
    """Prompts and their counterfactuals at one site.

    Attributes
    ----------
    name : str
        The attribute that differs.
    attributes : mapping of str to Tensor of shape (prompts,)
        Of the clean prompts.
    new : Tensor of shape (prompts,)
        The counterfactual value.
    clean_PD, target_PD : Tensor of shape (prompts, features)
        Activations of the clean and of the counterfactual prompts.
    """

    name: str
    attributes: Mapping[str, Int[Tensor, " P"]]
    new: Int[Tensor, " P"]
    clean_PD: Float[Tensor, "P D"]
    target_PD: Float[Tensor, "P D"]


@runtime_checkable
class Arm(Protocol):
    """What is evaluated."""

    def reconstruct(self, site: Site, a_PD: Tensor, attributes: Mapping[str, Tensor]) -> Float[Tensor, "P D"]:
        """Return the reconstruction of activations."""

    def edits(self, site: Site, change: Change, sizes: Sequence[int]) -> Edits:
        """Return edits that change an attribute."""


@dataclass(frozen=True)
class CodesArm:
    """A supervised dictionary: an edit swaps one code, whatever the size."""

    codes: Mapping[Site, AttributeCodes]

    def reconstruct(self, site: Site, a_PD: Tensor, attributes: Mapping[str, Tensor]) -> Float[Tensor, "P D"]:
        return self.codes[site].reconstruct(attributes)

    def edits(self, site: Site, change: Change, sizes: Sequence[int]) -> Edits:
        codes, name = self.codes[site], change.name
        edited_PD = codes.edit(change.clean_PD, name, change.attributes[name], change.new)
        return {"swap": (edited_PD - change.clean_PD, codes.weights(name, change.attributes))}


@dataclass(frozen=True)
class MeanArm:
    """The mean activation in place of every other."""

    means: Mapping[Site, Float[Tensor, " _"]]

    def reconstruct(self, site: Site, a_PD: Tensor, attributes: Mapping[str, Tensor]) -> Float[Tensor, "P D"]:
        return self.means[site].expand_as(a_PD)

    def edits(self, site: Site, change: Change, sizes: Sequence[int]) -> Edits:
        return {"swap": (self.means[site] - change.clean_PD, torch.ones(len(change.clean_PD)))}


@dataclass(frozen=True)
class DictionaryArm:
    """A dictionary that does not know the attributes.

    Attributes
    ----------
    dictionaries : mapping of Site to Dictionary
        One per site.
    latents : mapping of Site to mapping of str to Latents
        How well its features tell each attribute, on the training prompts.
    kept : int or None
        Reconstruct with this many coefficients only, those of the largest magnitude: for bases, which are complete.
    """

    dictionaries: Mapping[Site, Dictionary]
    latents: Mapping[Site, Mapping[str, Latents]]
    kept: int | None = None

    def reconstruct(self, site: Site, a_PD: Tensor, attributes: Mapping[str, Tensor]) -> Float[Tensor, "P D"]:
        encode, decoder_JD, bias_D = self.dictionaries[site]
        f_PJ = encode(a_PD)
        if self.kept is not None:
            kept = f_PJ.abs().topk(min(self.kept, f_PJ.shape[1]), dim=1).indices
            f_PJ = torch.zeros_like(f_PJ).scatter(1, kept, f_PJ.gather(1, kept))
        return f_PJ @ decoder_JD + bias_D

    def edits(self, site: Site, change: Change, sizes: Sequence[int]) -> Edits:
        encode, decoder_JD, _ = self.dictionaries[site]
        clean_PJ, changed_PJ = encode(change.clean_PD), encode(change.target_PD)
        target_PD = change.target_PD - change.clean_PD
        found = {str(n): e for n, e in sparse_edits(changed_PJ - clean_PJ, decoder_JD, target_PD, sizes).items()}
        if self.kept is None:  # the vectors of a basis stand for nothing
            f1_VJ, old = self.latents[site][change.name].f1_VJ, change.attributes[change.name]
            guided = guided_edits(clean_PJ, changed_PJ, decoder_JD, f1_VJ, old, change.new, sizes)
            found |= {f"{n}_guided": e for n, e in guided.items()}
        weight_PJ = feature_weights(clean_PJ, decoder_JD)
        return {n: (edit.change_PD, (weight_PJ * edit.touched_PJ).sum(1)) for n, edit in found.items()}


class Tally:
    """Numbers per prompt, by what they measure."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, ...], list[Tensor]] = defaultdict(list)

    def add(self, *key: str, values: Tensor) -> None:
        """Add the numbers of one batch."""
        self._parts[key].append(values.float().cpu())

    def mean(self, *key: str) -> float:
        """Return the mean over prompts; NaN is left out."""
        return float(torch.cat(self._parts[key]).nanmean())

    def undefined(self, *key: str) -> int:
        """Return how many of the numbers are NaN."""
        return int(torch.cat(self._parts[key]).isnan().sum())

    def names(self, *start: str) -> list[str]:
        """Return how the keys that begin like this go on."""
        size = len(start)
        return list(dict.fromkeys(key[size] for key in self._parts if key[:size] == start and len(key) > size))


@torch.no_grad()
def measure(
    model: nn.Module,
    task: AttributeTask,
    means: Mapping[Site, Float[Tensor, " _"]],
    arms: Mapping[str, Arm],
    sizes: Sequence[int],
    batch_size: int,
) -> Tally:
    """Measure all arms on the evaluation prompts.

    Returns
    -------
    Tally
        ``clean`` and ``mean``: logit differences. ``sufficiency``, ``necessity``, ``error`` per arm: logit differences
        and squared errors. ``accuracy`` and ``removed`` per attribute, arm and edit. ``patched``, ``unedited`` and
        ``changed`` per attribute: whether the counterfactual activations lead to the counterfactual answer, and whether
        the clean and the counterfactual predictions are the same as theirs.

    Raises
    ------
    CalibrationError
        If the sites have nothing to do with the task.
    """
    tally, sites, mediated = Tally(), list(means), list(task.counterfactuals)
    starts = range(0, len(task.evaluation), batch_size)
    for start in track(starts, "edits", total=len(starts)):
        rows = slice(start, start + batch_size)
        prompts = task.evaluation[rows]
        runs = PatchedRuns(model, prompts, sites)
        _approximate(tally, runs, prompts, means, arms)
        for name in mediated:
            _control(tally, runs, prompts, model, task.counterfactuals[name][rows], name, arms, sizes, batch_size)
        if start + batch_size >= min(ENOUGH, len(task.evaluation)):
            _check_mediation(tally, sites)
            mediated = [name for name in mediated if name in mediated_attributes(tally, task)]
    return tally


def _check_mediation(tally: Tally, sites: Sequence[Site]) -> None:
    difference = abs(tally.mean("clean") - tally.mean("mean"))
    if difference < LEAST_DIFFERENCE:
        raise CalibrationError(
            f"sites {', '.join(map(str, sites))} do not mediate the task",
            found=f"a logit difference that changes by {difference:.3g} without them",
            expected=f"at least {LEAST_DIFFERENCE}",
            do="Choose another site, or a model that does the task.",
        )


def mediated_attributes(tally: Tally, task: AttributeTask) -> list[str]:
    """Return the attributes whose change at the sites changes most predictions."""
    return [name for name in task.counterfactuals if 1 - tally.mean("unedited", name) >= MEDIATED]


def _approximate(
    tally: Tally, runs: PatchedRuns, prompts: Prompts, means: Mapping[Site, Tensor], arms: Mapping[str, Arm]
) -> None:
    """Replace the activations by their reconstruction, and by what it leaves out."""

    def difference(patches: Activations) -> Tensor:
        return _logit_difference(runs.logits(patches), prompts)

    clean = runs.activations
    averages = {site: mean.expand_as(clean[site]) for site, mean in means.items()}
    tally.add("clean", values=difference({}))
    tally.add("mean", values=difference(averages))
    for name, arm in arms.items():
        made = {site: arm.reconstruct(site, a, prompts.attributes) for site, a in clean.items()}
        rest = {site: clean[site] - made[site] + averages[site] for site in clean}
        tally.add("sufficiency", name, values=difference(made))
        tally.add("necessity", name, values=difference(rest))
        tally.add("error", name, values=_squares(clean, made) / _squares(clean, averages).mean())


def _control(
    tally: Tally,
    runs: PatchedRuns,
    prompts: Prompts,
    model: nn.Module,
    changed: Prompts,
    name: str,
    arms: Mapping[str, Arm],
    sizes: Sequence[int],
    batch_size: int,
) -> None:
    """Edit one attribute and compare the predictions with those of the counterfactual activations."""
    clean = runs.activations
    target = collect_activations(model, changed, list(clean), batch_size=batch_size)
    wanted = runs.logits(target).argmax(1)
    tally.add("patched", name, values=wanted.cpu() == changed.answers[:, 0])
    tally.add("unedited", name, values=wanted == runs.logits({}).argmax(1))
    new = changed.attributes[name]
    changes = {site: Change(name, prompts.attributes, new, a, target[site]) for site, a in clean.items()}
    for arm_name, arm in arms.items():
        edits = {site: arm.edits(site, change, sizes) for site, change in changes.items()}
        for kind in next(iter(edits.values())):
            edited = {site: clean[site] + edits[site][kind][0] for site in clean}
            tally.add("accuracy", name, arm_name, kind, values=runs.logits(edited).argmax(1) == wanted)
            removed = torch.stack([each[kind][1] for each in edits.values()])
            tally.add("removed", name, arm_name, kind, values=removed.nanmean(0))


def _logit_difference(logits: Tensor, prompts: Prompts) -> Float[Tensor, " P"]:
    right, wrong = logits.gather(1, prompts.answers.to(logits.device)).T
    return right - wrong


def _squares(first: Activations, second: Activations) -> Float[Tensor, " P"]:
    """Squared distances of activations, all sites together."""
    return torch.stack([(first[site] - second[site]).square().sum(1) for site in first]).sum(0)
