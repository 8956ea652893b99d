r"""Three heads over two networks: groceries that were trained for, the foods that ImageNet knows, and what is neither.

Grocery Store has photos of 81 groceries, ImageNet's own head knows 46 foods, and 11 foods are in both. The probability
of a label :math:`l` of the table ``foods.csv``, of food that has no label, and of no food at all are

.. math::

    P(l) = f \, \bigl(g \, P_G(l) + (1 - g) \, P_I(l)\bigr), \qquad
    P(\text{other food}) = f \, (1 - g) \bigl(1 - \textstyle\sum_l P_I(l)\bigr), \qquad
    P(\text{no food}) = 1 - f

:math:`P_G` is the softmax of the two grocery heads, a linear probe of EfficientNet-Lite0 and the same network with
fine-tuned last blocks, whose log-probabilities are averaged. :math:`P_I` is the softmax of ImageNet's head over all
1,000 classes, of which only the foods are given to labels: a food of both label sets adds up under one label (Granny
Smith), and ImageNet's bell pepper is divided among the four colors as the grocery heads divide them. The weights come
from two kinds of evidence:

* :math:`e_G`, the highest cosine between the centered features and the mean of a grocery class. It says whether the
  photo is like those of the groceries; the highest logit does not: it is as high for photos of cars.
* :math:`e_I`, the log-odds of ImageNet's foods, and the shelves, dishes and tools that food is photographed with,
  against its other classes.

.. math::

    g = \sigma\!\left(\frac{e_G - t}{w}\right), \qquad f = \sigma(a \, e_I + b \, e_G + c)
"""

from __future__ import annotations

import copy
import csv
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from weightsmith_kitchen.errors import ModelError
from weightsmith_kitchen.photos.backbones import FoodNetwork

__all__ = [
    "NOT_FOOD",
    "OTHER_FOOD",
    "Evidence",
    "FoodRow",
    "Gate",
    "MergedNetwork",
    "food_table",
    "merged_log_probabilities",
]

OTHER_FOOD, NOT_FOOD = "other-food", "not-food"
"""The classes of photos that show food without a label, and no food."""

GROCERIES = 81
IMAGENET = 1000
TUNED_SIDE = 128
"""Pixels that the fine-tuned network reads."""

PHOTOGRAPHED_WITH = (
    415, 440, 441, 463, 467, 469, 473, 478, 504, 505, 509, 519, 521, 532, 544, 567, 572, 582, 588, 618, 647, 653, 659,
    666, 692, 720, 728, 737, 760, 762, 766, 790, 791, 809, 813, 828, 849, 859, 860, 868, 886, 891, 898, 907, 909, 910,
    923, 968, 988, 989, 990, 998,
)  # fmt: skip
"""ImageNet classes of shops and shelves, packages and bottles, dishes and kitchen tools, nuts and ears: evidence of
food around, but no food that could be named."""

FLOOR = 1e-8


@dataclass(frozen=True)
class FoodRow:
    """A label, the plain name of its food, and its class in ImageNet (None for groceries that it does not know)."""

    label: str
    food: str
    imagenet: int | None


@cache
def food_table() -> tuple[FoodRow, ...]:
    """The rows of ``foods.csv``: the 81 groceries in the order of their data set, then the other foods of ImageNet.

    Examples
    --------
    >>> rows = food_table()
    >>> len(rows), rows[38].label, rows[38].food, rows[1].imagenet
    (116, 'Arla-Ecological-Medium-Fat-Milk', 'milk', 948)
    """
    text = files("weightsmith_kitchen.photos").joinpath("data", "foods.csv").read_text("utf-8")
    rows = csv.DictReader(text.splitlines())
    return tuple(FoodRow(row["label"], row["food"], int(row["imagenet"]) if row["imagenet"] else None) for row in rows)


@dataclass(frozen=True)
class Gate:
    """The numbers that weigh the two heads; chosen on validation photos.

    Attributes
    ----------
    temperature, image_temperature : float
        What the log-probabilities of the grocery heads and the logits of ImageNet's head are divided by.
    tuned : float
        Share of the fine-tuned network in the average of the two.
    like_groceries, softness : float
        :math:`t` and :math:`w`: the cosine at which groceries and ImageNet weigh alike, and how fast that changes.
    scenes, groceries, offset : float
        :math:`a`, :math:`b` and :math:`c`.
    """

    temperature: float = 1.0
    image_temperature: float = 1.0
    tuned: float = 0.6
    like_groceries: float = 0.4
    softness: float = 0.05
    scenes: float = 1.0
    groceries: float = 0.0
    offset: float = 0.0

    def to_dict(self) -> dict[str, float]:
        """The attributes, as JSON has them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Gate:
        """Read what :meth:`to_dict` wrote.

        Raises
        ------
        ModelError
            If a number is missing or no number.
        """
        names = set(asdict(cls()))
        if not isinstance(values, dict) or set(values) != names or not all(map(_is_number, values.values())):
            raise ModelError("gate", found=values, expected=f"numbers for {sorted(names)}")
        if min(values["temperature"], values["image_temperature"], values["softness"]) <= 0:
            raise ModelError("gate", found=values, expected="temperatures and softness above 0")
        return cls(**values)


@dataclass(frozen=True)
class Evidence:
    """What the networks say of photos before it is weighed.

    Attributes
    ----------
    probe_logits, tuned_logits : Tensor of shape (photos, 81)
        Of the two grocery heads.
    image_logits : Tensor of shape (photos, 1000)
        Of ImageNet's head.
    like_groceries : Tensor of shape (photos,)
        :math:`e_G`.
    scenes : Tensor of shape (photos,)
        :math:`e_I`.
    """

    probe_logits: Float[Tensor, "photos groceries"]
    tuned_logits: Float[Tensor, "photos groceries"]
    image_logits: Float[Tensor, "photos imagenet"]
    like_groceries: Float[Tensor, "photos"]
    scenes: Float[Tensor, "photos"]


class MergedNetwork(FoodNetwork):
    """EfficientNet-Lite0 with two heads, the same with fine-tuned last blocks and a third, and the gate between them.

    Its output are log-probabilities of all labels of ``foods.csv``, of :data:`OTHER_FOOD` and of :data:`NOT_FOOD`, in
    that order.

    Parameters
    ----------
    backbone : nn.Module
        EfficientNet-Lite0 without its head.
    image_head : nn.Linear
        Its head of 1,000 classes.
    gate : Gate
        The weights.
    """

    means: Tensor
    center: Tensor
    others: Tensor

    def __init__(self, backbone: nn.Module, image_head: nn.Linear, gate: Gate) -> None:
        features = image_head.in_features
        super().__init__(backbone, features, GROCERIES)
        if image_head.out_features != IMAGENET:
            raise ModelError("head of the backbone", found=image_head.out_features, expected=f"{IMAGENET} classes")
        self.image_head, self.gate = image_head, gate
        self.tuned = FoodNetwork(copy.deepcopy(backbone), features, GROCERIES)
        self.register_buffer("means", torch.zeros(GROCERIES, features))
        self.register_buffer("center", torch.zeros(features))
        others = torch.ones(IMAGENET, dtype=torch.bool)
        others[[*food_shares()[0], *PHOTOGRAPHED_WITH]] = False
        self.register_buffer("others", others, persistent=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return (*(row.label for row in food_table()), OTHER_FOOD, NOT_FOOD)

    def evidence(
        self, features: Float[Tensor, "photos features"], tuned_logits: Float[Tensor, "photos groceries"]
    ) -> Evidence:
        """Read the features of photos by the heads."""
        x = features.float()
        image = self.image_head(x)
        centered = functional.normalize(x - self.center, dim=1)
        similar = (centered @ functional.normalize(self.means - self.center, dim=1).T).amax(1)
        scenes = image[:, ~self.others].logsumexp(1) - image[:, self.others].logsumexp(1)
        return Evidence(self.head(x), tuned_logits.float(), image, similar, scenes)

    def tuned_logits(self, pixels: Float[Tensor, "photos 3 side side"]) -> Float[Tensor, "photos groceries"]:
        """What the fine-tuned network says of images, which it reads at 128 pixels."""
        small = functional.interpolate(pixels, (TUNED_SIDE, TUNED_SIDE), mode="bilinear", antialias=True)
        logits: Tensor = self.tuned(small)
        return logits

    def forward(self, pixels: Float[Tensor, "photos 3 side side"]) -> Float[Tensor, "photos labels"]:
        """Log-probabilities of images."""
        return merged_log_probabilities(self.evidence(self.features(pixels), self.tuned_logits(pixels)), self.gate)


@cache
def food_shares() -> tuple[tuple[int, ...], Float[Tensor, "foods labels"]]:
    """ImageNet's classes of foods, and 1 for every label that each of them is given to."""
    rows = food_table()
    foods = sorted({row.imagenet for row in rows if row.imagenet is not None})
    shares = torch.zeros(len(foods), len(rows))
    for column, row in enumerate(rows):
        if row.imagenet is not None:
            shares[foods.index(row.imagenet), column] = 1.0
    return tuple(foods), shares


def merged_log_probabilities(evidence: Evidence, gate: Gate) -> Float[Tensor, "photos labels"]:
    """Weigh what the heads say."""
    foods, shares = food_shares()
    shares = shares.to(evidence.image_logits.device)
    probe, tuned = evidence.probe_logits.log_softmax(1), evidence.tuned_logits.log_softmax(1)
    groceries = torch.softmax((gate.tuned * tuned + (1 - gate.tuned) * probe) / gate.temperature, 1)
    padded = functional.pad(groceries, (0, shares.shape[1] - GROCERIES))
    image = torch.softmax(evidence.image_logits / gate.image_temperature, 1)[:, list(foods)]
    # a food of ImageNet that is several labels is divided among them as the grocery heads have it
    several = shares.sum(1)[None, :, None] > 1
    weights = shares[None] * torch.where(several, padded[:, None, :] + FLOOR, 1.0)
    from_image = torch.einsum("nf,nfl->nl", image, weights / weights.sum(2, keepdim=True))
    g = torch.sigmoid((evidence.like_groceries - gate.like_groceries) / gate.softness)[:, None]
    f = torch.sigmoid(gate.scenes * evidence.scenes + gate.groceries * evidence.like_groceries + gate.offset)[:, None]
    known = f * (g * padded + (1 - g) * from_image)
    other = f * (1 - g) * (1 - image.sum(1, keepdim=True))
    return torch.cat([known, other, 1 - f], 1).clamp_min(FLOOR).log()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
