r"""Edits of activations by a few features of a dictionary, and how well its features tell attribute values.

Legend: ``P`` prompts, ``J`` features of a dictionary, ``D`` features of a site, ``V`` values of an attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from weightsmith.core.errors import HyperparameterError

__all__ = ["Edit", "Latents", "feature_weights", "guided_edits", "latent_scores", "sparse_edits"]

GROUP = 10
"""Values that a latent may stand for together."""

UNION = 32
"""Latents that may stand for a value together."""

TRACKED = 0.5
"""F1 from which on a latent tells a value."""


class Edit(NamedTuple):
    """A change of activations by a number of features.

    Attributes
    ----------
    change_PD : Tensor of shape (prompts, features)
        What is added to the activations.
    touched_PJ : Tensor of shape (prompts, dictionary features)
        The features that were changed.
    """

    change_PD: Float[Tensor, "P D"]
    touched_PJ: Bool[Tensor, "P J"]


def sparse_edits(
    delta_PJ: Float[Tensor, "P J"],
    decoder_JD: Float[Tensor, "J D"],
    target_PD: Float[Tensor, "P D"],
    sizes: Sequence[int],
) -> dict[int, Edit]:
    """Come as near to a target as a few features allow, without knowing what they mean.

    Features go, one after the other, from their clean to their counterfactual coefficient; each time the one that
    brings the sum nearest to the target, or none if none does.

    Parameters
    ----------
    delta_PJ : Tensor of shape (prompts, dictionary features)
        Counterfactual minus clean coefficients.
    decoder_JD : Tensor of shape (dictionary features, features)
        Their vectors.
    target_PD : Tensor of shape (prompts, features)
        Counterfactual minus clean activations.
    sizes : sequence of int
        Numbers of features to change, from 1 to those of the dictionary.

    Returns
    -------
    dict of int to Edit
        Per size.

    Raises
    ------
    HyperparameterError
        If a size is out of range.

    Examples
    --------
    >>> target = torch.tensor([[3.0, 1.0, 0.0]])
    >>> sparse_edits(target, torch.eye(3), target, [1, 2])[1].change_PD.tolist()
    [[3.0, 0.0, 0.0]]
    """
    hidden = len(decoder_JD)
    if not sizes or min(sizes) < 1 or max(sizes) > hidden:
        raise HyperparameterError("edit sizes", found=list(sizes), expected=f"from 1 to the {hidden} features")
    # ||left - delta d||^2 - ||left||^2 = delta^2 ||d||^2 - 2 delta d.left
    cost_PJ = delta_PJ.square() * decoder_JD.square().sum(1)
    left_PD, touched_PJ = target_PD.clone(), torch.zeros_like(delta_PJ, dtype=torch.bool)
    rows, edits = torch.arange(len(delta_PJ)), {}
    for size in range(1, max(sizes) + 1):
        gain_PJ = cost_PJ - 2 * delta_PJ * (left_PD @ decoder_JD.T)
        best, chosen = gain_PJ.masked_fill_(touched_PJ, torch.inf).min(1)
        helps = best < 0
        touched_PJ[rows[helps], chosen[helps]] = True
        left_PD = left_PD - torch.where(helps, delta_PJ[rows, chosen], 0)[:, None] * decoder_JD[chosen]
        if size in sizes:
            edits[size] = Edit(target_PD - left_PD, touched_PJ.clone())
    return edits


def guided_edits(
    clean_PJ: Float[Tensor, "P J"],
    changed_PJ: Float[Tensor, "P J"],
    decoder_JD: Float[Tensor, "J D"],
    f1_VJ: Float[Tensor, "V J"],
    old: Int[Tensor, " P"],
    new: Int[Tensor, " P"],
    sizes: Sequence[int],
) -> dict[int, Edit]:
    """Change the features that stand for the old and the new value of an attribute.

    Half of the features are removed: those with the highest F1 for the old value among the active ones. The other half
    is added, with their counterfactual coefficients. Fewer are taken where fewer are active.

    Parameters
    ----------
    clean_PJ, changed_PJ : Tensor of shape (prompts, dictionary features)
        Coefficients of the clean and of the counterfactual activations.
    decoder_JD : Tensor of shape (dictionary features, features)
        Their vectors.
    f1_VJ : Tensor of shape (values, dictionary features)
        From :func:`latent_scores`.
    old, new : Tensor of shape (prompts,)
        Values of the attribute.
    sizes : sequence of int
        Numbers of features to change, both sides together; odd ones are left out.

    Returns
    -------
    dict of int to Edit
        Per even size.

    Examples
    --------
    >>> one, other = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    >>> edits = guided_edits(one, other, torch.eye(2), torch.eye(2), torch.tensor([0]), torch.tensor([1]), [2])
    >>> edits[2].change_PD.tolist()
    [[-2.0, 3.0]]
    """
    edits = {}
    for size in (size for size in sizes if size % 2 == 0):
        count = min(size // 2, len(decoder_JD))
        removed_PJ = _best_active(clean_PJ, f1_VJ[old], count)
        added_PJ = _best_active(changed_PJ, f1_VJ[new], count)
        change_PJ = changed_PJ * added_PJ - clean_PJ * removed_PJ
        edits[size] = Edit(change_PJ @ decoder_JD, added_PJ | removed_PJ)
    return edits


def _best_active(f_PJ: Tensor, score_PJ: Tensor, count: int) -> Bool[Tensor, "P J"]:
    best = score_PJ.masked_fill(f_PJ <= 0, -torch.inf).topk(count, dim=1)
    return torch.zeros_like(f_PJ, dtype=torch.bool).scatter_(1, best.indices, best.values.isfinite())


def feature_weights(f_PJ: Float[Tensor, "P J"], decoder_JD: Float[Tensor, "J D"]) -> Float[Tensor, "P J"]:
    """Return which share of each reconstruction every feature makes up; they sum to 1, or are NaN where there is none.

    Examples
    --------
    >>> feature_weights(torch.tensor([[3.0, 1.0]]), torch.eye(2)).tolist()[0]
    [0.8999999761581421, 0.10000000149011612]
    """
    rest_PD = f_PJ @ decoder_JD
    return f_PJ * (rest_PD @ decoder_JD.T) / rest_PD.square().sum(1, keepdim=True)


class Latents(NamedTuple):
    """How well the features of a dictionary tell the values of an attribute.

    Attributes
    ----------
    f1_VJ : Tensor of shape (values, dictionary features)
        Of the active prompts of a feature as a prediction of a value; minus infinity for features never active.
    best : Tensor of shape (values that occur,)
        F1 of the best feature per value; 0 without any.
    group_f1_J : Tensor of shape (dictionary features,)
        F1 of a feature for the best one to ten values together.
    union_f1 : Tensor of shape (values that occur,)
        F1 of the best one to 32 features together, for one value.
    union_size : Tensor of shape (values that occur,)
        How many features that takes: more than 1 where a value is split over several.
    """

    f1_VJ: Float[Tensor, "V J"]
    best: Float[Tensor, " seen"]
    group_f1_J: Float[Tensor, " J"]
    union_f1: Float[Tensor, " seen"]
    union_size: Int[Tensor, " seen"]

    @property
    def occluded_share(self) -> float:
        """Share of the values that no feature tells."""
        return float((self.best < TRACKED).float().mean())


def latent_scores(active_PJ: Bool[Tensor, "P J"], numbers: Int[Tensor, " P"], values: int) -> Latents:
    """Compare where features are active with where an attribute has each of its values.

    Parameters
    ----------
    active_PJ : Tensor of shape (prompts, dictionary features)
        Where features are above 0.
    numbers : Tensor of shape (prompts,)
        The attribute's value of each prompt.
    values : int
        How many it has; those that do not occur are left out.

    Returns
    -------
    Latents
        F1 per value and feature, per group of values, and per union of features.

    Examples
    --------
    >>> active = torch.tensor([[True, True, False], [True, False, False], [False, True, False], [False, True, True]])
    >>> scores = latent_scores(active, torch.tensor([0, 0, 1, 1]), 2)
    >>> scores.best.tolist(), scores.f1_VJ[0, 0].item()
    ([1.0, 0.800000011920929], 1.0)
    """
    onehot_PV = torch.nn.functional.one_hot(numbers, values).float()
    active = active_PJ.float()
    both_VJ, on_J, count_V = onehot_PV.T @ active, active.sum(0), onehot_PV.sum(0)
    f1_VJ = 2 * both_VJ / (on_J + count_V[:, None])  # 2 precision recall / (precision + recall)
    f1_VJ = f1_VJ.masked_fill((on_J == 0) | (count_V[:, None] == 0), -torch.inf)
    ranked = f1_VJ.topk(min(GROUP, values), dim=0)
    hits = both_VJ.gather(0, ranked.indices).cumsum(0)
    sizes = count_V[ranked.indices].cumsum(0)
    group_f1 = (2 * hits / (on_J + sizes)).masked_fill(~ranked.values.isfinite(), -torch.inf).max(0).values
    union_f1, union = torch.zeros(values), torch.zeros(values, dtype=torch.long)
    for value in (count_V > 0).nonzero().flatten().tolist():
        # the features whose activity is the best evidence of the value, then as many of them as help
        best = f1_VJ[value].topk(min(UNION, f1_VJ.shape[1]))
        columns = best.indices[best.values.isfinite()]
        if len(columns):
            covered = active[:, columns].cummax(1).values
            is_value = onehot_PV[:, value]
            f1 = 2 * (is_value @ covered) / (covered.sum(0) + is_value.sum())
            union_f1[value], at = f1.max(0)
            union[value] = at + 1
    known = count_V > 0
    return Latents(f1_VJ, f1_VJ.max(1).values.clamp(min=0)[known], group_f1, union_f1[known], union[known])
