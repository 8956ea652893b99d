r"""Judge a sparse dictionary of activations next to one that knows the attributes.

Makelov, Lange, Nanda, "Towards Principled Evaluations of Sparse Autoencoders for Interpretability and Control" (2024),
arXiv 2405.08366. With the logit difference LD of the right and the wrong answer, averaged over prompts, of the model
with its activations a replaced,

.. math::

    \mathrm{sufficiency} = \frac{\mathrm{LD}(\hat a) - \mathrm{LD}(\bar a)}{\mathrm{LD}(a) - \mathrm{LD}(\bar a)},
    \qquad
    \mathrm{necessity} = 1 - \frac{|\mathrm{LD}(a - \hat a + \bar a) - \mathrm{LD}(\bar a)|}
    {|\mathrm{LD}(a) - \mathrm{LD}(\bar a)|}.

Control is the share of prompts for which an edit of a few features leads to the same prediction as the activations of
the counterfactual prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from weightsmith.analyze._sae_eval.codes import mean_codes, mse_codes
from weightsmith.analyze._sae_eval.dictionaries import Dictionary, as_dictionary, load_dictionary
from weightsmith.analyze._sae_eval.edits import Latents, latent_scores
from weightsmith.analyze._sae_eval.evaluate import (
    Arm,
    CodesArm,
    DictionaryArm,
    MeanArm,
    Tally,
    measure,
    mediated_attributes,
)
from weightsmith.analyze._sae_eval.sites import PatchedRuns, Site, collect_activations
from weightsmith.analyze._sae_eval.task import AttributeTask, ioi_task
from weightsmith.core.choices import check_choice
from weightsmith.core.errors import CalibrationError, HyperparameterError, UnsupportedModelError
from weightsmith.core.models import find_blocks
from weightsmith.core.results import Result, record
from weightsmith.core.training import draw_seed, seed_of
from weightsmith.embedded import open_model

__all__ = ["evaluate_dictionary", "find_sites", "sae_eval"]

Task = Literal["ioi"]

FOUND = 0.8
"""Share of counterfactual predictions that patching a site must bring about, for it to be found."""

SEARCHED = 64
"""Prompts that sites are searched with."""

KEPT = 16
"""Coefficients that a basis reconstructs with, if there is no dictionary whose number it could take."""


def sae_eval(
    model: nn.Module | str,
    *,
    dictionary: Sequence[str] = (),
    sites: str | Sequence[str] = "auto",
    task: Task = "ioi",
    tokenizer: PreTrainedTokenizerBase | None = None,
    train_prompts: int = 1024,
    evaluation_prompts: int = 256,
    names: int = 32,
    edit_sizes: Sequence[int] = (1, 2, 4, 8),
    batch_size: int = 128,
    generator: torch.Generator | None = None,
) -> Result:
    """Judge sparse autoencoders by how well they approximate, edit and explain a task with known attributes.

    Each is compared with the supervised dictionary of the attributes, the ceiling, and with controls: principal
    components, random directions, the mean activation. Sites that do not decide the task are refused.

    Parameters
    ----------
    model : nn.Module or str
        A causal language model, or its location: a folder, a hub id, or ``embedded:NAME``.
    dictionary : sequence of str
        Folders of SAELens (``cfg.json`` and safetensors), or ``.safetensors`` files with ``components`` (and ``mean``).
        For sites that are evaluated together one per site, separated by commas. Without any, only the ceiling and the
        controls are measured.
    sites : str or sequence of str
        Such as ``23.resid@end`` (output of block 23 at the last token) or ``9.z.6@end`` (output of head 6 in block 9);
        also ``q``, ``k`` and ``v``, and the tokens ``io``, ``s1``, ``s1+1`` and ``s2``. Several separated by commas are
        patched together. ``auto`` is the first
        block output at the last token that carries the answer.
    task : {"ioi"}, default: "ioi"
        Indirect object identification: "Then, Mary and John ... John gave a ring to", with names of the tokenizer.
    tokenizer : PreTrainedTokenizerBase, optional
        The model's own; needed if the model is not given by its location.
    train_prompts, evaluation_prompts : int
        Number of prompts that dictionaries are fitted and ranked on, and that they are measured on.
    names : int, default: 32
        Number of names, at least 8.
    edit_sizes : sequence of int
        Numbers of features that an edit may change.
    batch_size : int, default: 128
        Prompts per forward pass.
    generator : torch.Generator, optional
        Draws the prompts and the random directions; seed 0 by default.

    Returns
    -------
    Result
        A row per dictionary and attribute, and curves of the accuracy over the size of the edits.

    Raises
    ------
    CalibrationError
        If the tokenizer has too few names, or a site does not decide the task.
    CheckpointError
        If a dictionary cannot be read.
    HyperparameterError
        If an option is out of range.
    NonFiniteError
        If activations are NaN or infinite.
    ShapeError
        If a dictionary does not fit its site.
    UnsupportedModelError
        If the model is no causal language model.

    References
    ----------
    Makelov, Lange, Nanda, arXiv 2405.08366.

    Examples
    --------
    >>> small = {"train_prompts": 32, "evaluation_prompts": 4, "names": 8, "edit_sizes": (2,)}
    >>> result = sae_eval("embedded:smollm2", sites="23.resid@end", **small)
    >>> [row["layer"] for row in result.layers[:2]]
    ['io: supervised, means', 'io: supervised, least squares']
    """
    check_choice("task", task, Task)
    if isinstance(model, str):
        opened = open_model(model)
        model, tokenizer = opened.model, opened.tokenizer
    _check_causal(model)
    seed = draw_seed(generator)
    made = ioi_task(
        tokenizer, count=names, train_prompts=train_prompts, evaluation_prompts=evaluation_prompts, seed=seed
    )
    sources = {path: [load_dictionary(part) for part in path.split(",")] for path in dictionary}
    sections = [sites] if isinstance(sites, str) else list(sites)
    named: dict[str, Any] = {
        "task": task,
        "dictionary": list(dictionary),
        "train_prompts": train_prompts,
        "evaluation_prompts": evaluation_prompts,
        "names": names,
        "edit_sizes": list(edit_sizes),
        "batch_size": batch_size,
    }
    with record("sae-eval", seed=seed_of(generator), **named) as result:
        for section in sections:
            chosen = find_sites(model, made) if section == "auto" else [Site.parse(site) for site in section.split(",")]
            part = evaluate_dictionary(
                model, sources, made, chosen, edit_sizes=edit_sizes, batch_size=batch_size, seed=seed
            )
            _append(result, part, ",".join(map(str, chosen)), several=len(sections) > 1)
            result.hyper.setdefault("sites", []).append(",".join(map(str, chosen)))
    result.reading, result.title = True, "sparse dictionary"
    return result


def evaluate_dictionary(
    model: nn.Module,
    dictionaries: Mapping[str, Any],
    task: AttributeTask,
    sites: Sequence[Site],
    *,
    edit_sizes: Sequence[int] = (1, 2, 4, 8),
    batch_size: int = 128,
    seed: int = 0,
    train_activations: Mapping[Site, Tensor] | None = None,
) -> Result:
    """Judge dictionaries of the activations at some sites, which are patched together.

    Parameters
    ----------
    model : nn.Module
        A causal language model.
    dictionaries : mapping of str to object
        By name: what :func:`as_dictionary` takes, or a sequence of one per site.
    task : AttributeTask
        Prompts, their attributes and counterfactuals.
    sites : sequence of Site
        At least one.
    edit_sizes, batch_size
        As for :func:`sae_eval`.
    seed : int, default: 0
        Of the random directions.
    train_activations : mapping of Site to Tensor, optional
        Those of the training prompts, from :func:`collect_activations`, where they are known.

    Returns
    -------
    Result
        As of :func:`sae_eval`, which also has the errors.
    """
    _check_causal(model)
    if not sites:
        raise HyperparameterError("sites", found="none", expected="at least one")
    if batch_size < 1:
        raise HyperparameterError("batch_size", found=batch_size, expected=">= 1")
    widths = {site: rows.shape[1] for site, rows in collect_activations(model, task.train[:1], sites).items()}
    given = {name: _per_site(name, source, widths) for name, source in dictionaries.items()}
    most = min([*widths.values(), *(len(each.decoder_JD) for made in given.values() for each in made.values())])
    if not edit_sizes or min(edit_sizes) < 1 or max(edit_sizes) > most:
        raise HyperparameterError("edit_sizes", found=list(edit_sizes), expected=f"from 1 to {most} features")
    with record("sae-eval", seed=seed, sites=[str(site) for site in sites], edit_sizes=list(edit_sizes)) as result:
        train = train_activations or collect_activations(model, task.train, sites, batch_size=batch_size)
        arms = _arms(train, task, given, seed)
        means = {site: rows.mean(0) for site, rows in train.items()}
        tally = measure(model, task, means, arms, edit_sizes, batch_size)
        _fill(result, tally, task, arms, train)
    result.reading = True
    return result


@torch.no_grad()
def find_sites(model: nn.Module, task: AttributeTask, attribute: str = "io") -> list[Site]:
    """Find the first block whose output at the last token carries what decides the answer.

    Parameters
    ----------
    model : nn.Module
        A causal language model.
    task : AttributeTask
        Its evaluation prompts are patched with their counterfactuals.
    attribute : str, default: "io"
        The attribute that differs.

    Returns
    -------
    list of Site
        One site: patched with the counterfactual's activations, most prompts are answered as the counterfactual.

    Raises
    ------
    CalibrationError
        If the model does not do the task: no site brings the counterfactual's answer about.
    """
    sites = [Site(block, "resid") for block in range(len(find_blocks(model)))]
    runs = PatchedRuns(model, task.evaluation[:SEARCHED], sites)
    changed = task.counterfactuals[attribute][:SEARCHED]
    target = collect_activations(model, changed, sites)
    shares = []
    for site in sites:
        predicted = runs.logits({site: target[site]}).argmax(1).cpu()
        shares.append(float((predicted == changed.answers[:, 0]).float().mean()))
        if shares[-1] >= FOUND:
            return [site]
    raise CalibrationError(
        "the model does not do the task",
        found=f"{max(shares):.0%} of the counterfactual answers, with any block's output patched",
        expected=f"at least {FOUND:.0%}",
        do="Choose another model.",
    )


def _check_causal(model: nn.Module) -> None:
    config = getattr(model, "config", None)
    can_generate = getattr(model, "can_generate", None)
    if can_generate is None or not can_generate() or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError("the model", found=type(model).__name__, expected="a causal language model")


def _per_site(name: str, source: Any, widths: Mapping[Site, int]) -> dict[Site, Dictionary]:
    listed = list(source) if isinstance(source, (list, tuple)) and not isinstance(source, Dictionary) else [source]
    if len(listed) != len(widths):
        raise HyperparameterError(
            f"dictionary {name!r}", found=f"{len(listed)} of them", expected=f"one for each of {len(widths)} sites"
        )
    return {site: as_dictionary(each, width) for each, (site, width) in zip(listed, widths.items(), strict=True)}


def _arms(
    train: Mapping[Site, Tensor], task: AttributeTask, given: Mapping[str, Mapping[Site, Dictionary]], seed: int
) -> dict[str, Arm]:
    """The supervised dictionaries, the given ones, and the controls."""
    attributes, values = task.train.attributes, task.values

    def arm(dictionaries: Mapping[Site, Dictionary], kept: int | None = None) -> DictionaryArm:
        latents: dict[Site, dict[str, Latents]] = {}
        for site, dictionary in dictionaries.items():
            active = dictionary.encode(train[site]) > 0
            latents[site] = {name: latent_scores(active, attributes[name], len(values[name])) for name in values}
        return DictionaryArm(dictionaries, latents, kept)

    fits = {"supervised, means": mean_codes, "supervised, least squares": mse_codes}
    arms: dict[str, Arm] = {
        name: CodesArm({site: fit(rows, attributes, values) for site, rows in train.items()})
        for name, fit in fits.items()
    }
    arms |= {name: arm(dictionaries) for name, dictionaries in given.items()}
    counts = [(d.encode(train[site]) != 0).float().sum(1).mean() for each in given.values() for site, d in each.items()]
    kept = max(1, round(float(torch.stack(counts).mean()))) if counts else KEPT
    principal, random, draw = {}, {}, torch.Generator().manual_seed(seed)
    for site, rows in train.items():
        mean_D, width = rows.mean(0), rows.shape[1]
        axes_JD = torch.linalg.eigh((rows - mean_D).T @ (rows - mean_D)).eigenvectors.flip(1).T
        turned_JD = torch.linalg.qr(torch.randn(width, width, generator=draw)).Q.to(rows)
        principal[site], random[site] = _basis(axes_JD, mean_D), _basis(turned_JD, mean_D)
    arms["principal components"], arms["random directions"] = arm(principal, kept), arm(random, kept)
    arms["mean activation"] = MeanArm({site: rows.mean(0) for site, rows in train.items()})
    return arms


def _basis(rows_JD: Tensor, mean_D: Tensor) -> Dictionary:
    return Dictionary(lambda a_PD: (a_PD - mean_D) @ rows_JD.T, rows_JD, mean_D)


def _fill(
    result: Result, tally: Tally, task: AttributeTask, arms: Mapping[str, Arm], train: Mapping[Site, Tensor]
) -> None:
    """One row per attribute and arm, curves over the size of the edits, and notes."""
    clean, mean = tally.mean("clean"), tally.mean("mean")
    mediated = mediated_attributes(tally, task)
    for attribute in task.values:
        for name, arm in arms.items():
            row: dict[str, Any] = {}
            if attribute in mediated:
                row["logit_difference"] = tally.mean("sufficiency", name)
                row["sufficiency"] = (row["logit_difference"] - mean) / (clean - mean)
                row["necessity"] = 1 - abs(tally.mean("necessity", name) - mean) / abs(clean - mean)
                row["variance_explained"] = 1 - tally.mean("error", name)
                row |= _edited(result, tally, attribute, name)
            if isinstance(arm, DictionaryArm):
                row |= _explained(arm, attribute, train)
            if row:
                result.layer(f"{attribute}: {name}", **row)
        if attribute in task.counterfactuals:
            same = tally.mean("unedited", attribute)
            result.layer(f"{attribute}: no edit", logit_difference=clean, edit_accuracy=same)
            result.notes.append(
                f"{attribute!r}: the counterfactual activations lead to the counterfactual answer in "
                f"{tally.mean('patched', attribute):.0%} of the prompts; edits are compared with what they lead to."
            )
            if attribute not in mediated:
                result.notes.append(
                    f"{attribute!r} is not edited: its counterfactual activations change {1 - same:.0%} of the "
                    "predictions, so the site does not mediate it."
                )


def _edited(result: Result, tally: Tally, attribute: str, name: str) -> dict[str, Any]:
    """The accuracy of edits of the smallest even size, or the smallest; that of all sizes as a curve."""
    sizes = sorted(result.hyper["edit_sizes"])
    shown = min((size for size in sizes if size % 2 == 0), default=sizes[0])
    kinds = tally.names("accuracy", attribute, name)

    def accuracy(kind: str) -> float:
        return tally.mean("accuracy", attribute, name, kind if "swap" not in kinds else "swap")

    result.curves[f"edit accuracy, {attribute}: {name}"] = [(size, accuracy(str(size))) for size in sizes]
    row = {"edit_accuracy": accuracy(str(shown))}
    if f"{shown}_guided" in kinds:
        row["guided_accuracy"] = accuracy(f"{shown}_guided")
    key = ("removed", attribute, name, "swap" if "swap" in kinds else str(shown))
    row["weight_removed"] = tally.mean(*key)
    if count := tally.undefined(*key):
        result.notes.append(f"{name}: {count} reconstructions have no active feature, and no weight to remove.")
    return row


def _explained(arm: DictionaryArm, attribute: str, train: Mapping[Site, Tensor]) -> dict[str, Any]:
    """What the features of a dictionary tell of an attribute, on average over the sites."""
    scores = [latents[attribute] for latents in arm.latents.values()]
    row = {
        "f1": _mean([each.best for each in scores]),
        "occluded_share": _mean([each.occluded_share for each in scores]),
        "features_per_value": _mean([each.union_size for each in scores]),
    }
    if arm.kept is None:
        active = [dictionary.encode(train[site]) != 0 for site, dictionary in arm.dictionaries.items()]
        row["active_features"] = _mean([each.sum(1) for each in active])
        row["dead_share"] = _mean([~each.any(0) for each in active])
    return row


def _mean(values: Sequence[Tensor | float]) -> float:
    return float(torch.cat([torch.as_tensor(value).float().reshape(-1) for value in values]).mean())


def _append(result: Result, part: Result, sites: str, *, several: bool) -> None:
    """Add the record of one section to that of all."""
    after = f" at {sites}" if several else ""
    for row in part.layers:
        result.layers.append({**row, "layer": row["layer"] + after})
    result.curves |= {f"{title}{after}:{line}": values for key, values in part.curves.items()
                      for title, _, line in [key.partition(":")]}  # fmt: skip
    result.notes += [f"{note}{' (' + sites + ')' if several else ''}" for note in part.notes]
