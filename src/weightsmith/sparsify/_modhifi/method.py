r"""ModHiFi: remove the channels that contribute least to each layer's outputs, and re-solve the remaining weights.

Kashyap, Murti, Nayak, Narshana, Bhattacharyya, "ModHiFi: Identifying High Fidelity predictive components for Model
Modification", 2025, arXiv 2511.19566. A subset :math:`C` of the input channels has the fidelity

.. math::
    FS_c(C) = \max_\delta 1 - E\Bigl\lVert Y_c - \sum_{i \in C} \delta_i A_{ci} \Bigr\rVert^2 \Big/ E\lVert Y_c \rVert^2

where :math:`A_{ci}` is what channel :math:`i` contributes to output :math:`c`. Scores and solution need only the second
moments of each layer's inputs, from forward passes over data without labels.

Legend: ``O`` outputs, ``I`` inputs (columns of the weight), ``K`` kept ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Batches, as_batches
from weightsmith.core.errors import HyperparameterError
from weightsmith.core.results import Result, record
from weightsmith.core.sharding import refuse_sharded
from weightsmith.core.training import check_finite, refuse_adapters, restored_on_error, seed_of
from weightsmith.sparsify._modhifi.pruning import Pruning, rounded
from weightsmith.sparsify._modhifi.selection import Score, best, check_score

__all__ = ["modhifi"]

Scope = Literal["layer", "global"]
Compensation = Literal["ols", "none"]


def modhifi(
    model: nn.Module,
    calibration: Batches,
    *,
    ratio: float = 0.2,
    score: Score = "saliency",
    scope: Scope = "layer",
    compensation: Compensation = "ols",
    multiple_of: int = 1,
    skip_tokens: int = 0,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    generator: torch.Generator | None = None,
) -> Result:
    """Remove feed-forward neurons and convolution channels, and re-solve the remaining weights (ModHiFi).

    The model becomes smaller: neurons leave both layers around them, channels all layers that share them (residual
    sums, batch normalization, depthwise convolutions), and the configuration of a Hugging Face model says the new
    width. Attention heads and the residual stream of transformers stay. Batch normalization is re-estimated.

    Parameters
    ----------
    model : nn.Module
        Any model; changed in place. Of one on disk (:func:`~weightsmith.core.io.offloaded`) only channels inside one
        block can be removed, which are the feed-forward neurons of transformers.
    calibration : sequence of batches
        Typical or generated inputs without labels, of all classes: a few hundred images, or 128 sequences of 1024
        tokens.
    ratio : float, default: 0.2
        Share of the channels to remove, in [0, 1). At least one channel, or ``multiple_of``, stays.
    score : {"saliency", "fidelity", "energy", "greedy", "l2", "random"}, default: "saliency"
        What ranks the channels: their share of the outputs' energy (the paper's default), their squared correlation
        with the outputs, the energy of their contribution alone (the paper's choice for language models), the energy
        that they add to the channels chosen before (best, and takes seconds per layer), the norm of their weights, or
        chance.
    scope : {"layer", "global"}, default: "layer"
        Whether the ratio holds in each layer, or over all layers together. A Hugging Face configuration has one width
        for all layers and allows the first only.
    compensation : {"ols", "none"}, default: "ols"
        Whether the remaining weights are solved by least squares to reconstruct the layer's outputs.
    multiple_of : int, default: 1
        The number of channels that stay is rounded to the nearest multiple, which some hardware computes faster.
    skip_tokens : int, default: 0
        Leave out so many tokens at the start of every sequence from the statistics: the first token of a language
        model may have activations that outweigh all others.
    include, exclude : str or sequence of str
        Shell patterns on the names of the layers that read the channels, such as ``"*down_proj"``.
    generator : torch.Generator, optional
        Draws the random scores; seed 0 by default.

    Returns
    -------
    Result
        Per layer that reads channels: ``channels`` before, those ``remaining``, and the share of the outputs' energy
        that is reconstructed, ``fidelity``, and would be without compensation, ``fidelity_uncompensated``.

    Raises
    ------
    CalibrationError
        If there are no usable calibration batches.
    HyperparameterError
        If an option is out of range.
    LayerNotFoundError
        If no layer matches.
    NonFiniteError
        If weights or activations hold NaN or infinity.
    UnsupportedModelError
        If nothing can be removed: the message says what is in the way.

    Warns
    -----
    UserWarning
        If a layer saw fewer calibration rows than it keeps inputs.

    References
    ----------
    Kashyap, Murti, Nayak, Narshana, Bhattacharyya, "ModHiFi: Identifying High Fidelity predictive components for Model
    Modification", arXiv 2511.19566.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> modhifi(model, [torch.randn(64, 3)], ratio=0.5).totals["remaining"], model[2].weight.shape
    (5, torch.Size([2, 5]))
    """
    _check(ratio, scope, compensation, multiple_of, skip_tokens)
    check_score(score)
    generator = generator or torch.Generator().manual_seed(0)
    with record(
        "modhifi",
        seed=seed_of(generator),
        ratio=ratio,
        score=score,
        scope=scope,
        compensation=compensation,
        multiple_of=multiple_of,
        skip_tokens=skip_tokens,
        include=include,
        exclude=exclude,
    ) as result:
        refuse_adapters(model)
        refuse_sharded(model)
        check_finite(model)
        batches = as_batches(calibration)
        run = Pruning(model, batches, result, score, compensation, skip_tokens, generator)
        run.prepare(include, exclude, scope, ratio, multiple_of)
        if run.channels:
            with restored_on_error(model):
                run.prune(_allot(run, ratio, multiple_of) if scope == "global" else {})
        run.summarize()
    return result


def _check(ratio: float, scope: str, compensation: str, multiple_of: int, skip_tokens: int) -> None:
    if not 0 <= ratio < 1:
        raise HyperparameterError("ratio", found=ratio, expected="a number in [0, 1)")
    check_choice("scope", scope, Scope)
    check_choice("compensation", compensation, Compensation)
    if multiple_of < 1:
        raise HyperparameterError("multiple_of", found=multiple_of, expected=">= 1")
    if skip_tokens < 0:
        raise HyperparameterError("skip_tokens", found=skip_tokens, expected=">= 0")


def _allot(run: Pruning, ratio: float, multiple_of: int) -> dict[str, int]:
    """How many channels of each group stay if the lowest of all scores leave."""
    scores = run.scores()
    every = torch.cat([score.cpu() for score in scores.values()])
    owner = torch.cat([torch.full((len(score),), place) for place, score in enumerate(scores.values())])
    stays = best(every, len(every) - round(ratio * len(every)))
    counts = owner[stays].bincount(minlength=len(scores)).tolist()
    return {
        name: rounded(count, len(score), multiple_of)
        for (name, score), count in zip(scores.items(), counts, strict=True)
    }
