r"""Tupc: units, portions and calories of a list of ingredients by four small transformer decoders.

Paper: A. B. Jelodar, Y. Sun, "Calorie Aware Automatic Meal Kit Generation from an Image", arXiv:2112.09839. Each
decoder reads the ingredients as a set and looks at the image. With :math:`I` the embeddings of the ingredients and
:math:`F` the image,

.. math::

    E_u &= D_u(P_u I, F_u), & E_p &= D_p([P_u I, E_u], F_p), \\
    E_a &= D_a(L[P_p [P_u I, E_u], E_p], F_a), & E_c &= D_c(I, F_c),

unit, portion and (twice) energy of each ingredient are linear in these, and the total is linear in the
attention-weighted sums of :math:`E_c` and :math:`E_a`. The paper's text and figure differ on what the alignment decoder
:math:`D_a` reads; the figure is followed, since otherwise it would never see portions.

Legend: ``B`` recipes, ``N`` slots of ingredients, ``E`` width, ``P`` places of the image, ``U`` units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.errors import HyperparameterError, ShapeError

__all__ = ["LOSSES", "KitOutput", "PortionCalorieNet", "begin_at_means", "kit_loss", "unit_weights"]

LOSSES = {"calorie": 1.0, "unit": 1.0, "portion": 1.0, "align": 0.1, "total": 1.0}
"""Weights of the parts of the loss, as in the paper."""


class KitOutput(NamedTuple):
    """What the network says of each ingredient, in scaled units; what stands on padding means nothing."""

    units: Float[Tensor, "B N U"]
    portions: Float[Tensor, "B N"]
    kcal: Float[Tensor, "B N"]
    aligned: Float[Tensor, "B N"]
    total: Float[Tensor, "B"]


class Attention(nn.Module):
    """Multi-head attention whose heads have a width of their own, as the paper's 8 of 64 at any width of the model."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, width)

    def forward(
        self,
        x: Float[Tensor, "B N E"],
        source: Float[Tensor, "B P E"],
        mask: Bool[Tensor, "B P"] | Bool[Tensor, "B N P"] | None = None,
    ) -> Float[Tensor, "B N E"]:
        """Attend from ``x`` to ``source``, to what the mask names only; a mask may differ from slot to slot."""
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        seen = None if mask is None else mask[:, None] if mask.ndim == 3 else mask[:, None, None]
        found = functional.scaled_dot_product_attention(
            split(self.query(x)), split(self.key(source)), split(self.value(source)), attn_mask=seen
        )
        return self.out(found.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Self-attention over ingredients, cross-attention to the image, feed-forward; each with residual and norm.

    Queries are ingredients, keys and values the image: the paper's sentence on it does not fit its own shapes. There
    are no positions and no causal mask, since a list of ingredients is a set.
    """

    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.within, self.across = (Attention(width, heads, head_width) for _ in range(2))
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """One layer."""
        x = self.norms[0](x + self.dropout(self.within(x, x, mask)))
        x = self.norms[1](x + self.dropout(self.across(x, image)))
        return self.norms[2](x + self.dropout(self.feed(x)))


class Decoder(nn.Module):
    """A stack of decoder layers and the projection of the image to their width."""

    def __init__(
        self, width: int, image_channels: int | None, layers: int, heads: int, head_width: int, dropout: float
    ) -> None:
        super().__init__()
        self.image = nn.Linear(image_channels, width) if image_channels is not None else None  # a 1x1 convolution
        self.blank = nn.Parameter(torch.zeros(1, 1, width)) if image_channels is None else None
        self.layers = nn.ModuleList(DecoderLayer(width, heads, head_width, dropout) for _ in range(layers))

    def forward(self, x: Tensor, image: Tensor | None, mask: Tensor) -> Tensor:
        """Embeddings of the ingredients that know the others and the image."""
        if self.image is not None:
            if image is None:
                raise ShapeError(
                    "image of the network", expected="a map of features", do="Make it without image_channels."
                )
            seen = self.image(image.flatten(2).transpose(1, 2))
        else:
            refuse_image(image, "network")
            assert self.blank is not None
            seen = self.blank.expand(len(x), -1, -1)
        for layer in self.layers:
            x = layer(x, seen, mask)
        return x


def refuse_image(image: Tensor | None, what: str) -> None:
    """Raise a ShapeError where an image is given to what was made without ``image_channels``."""
    if image is not None:
        raise ShapeError(
            f"image of the {what}", found=tuple(image.shape), expected="none", do="Make it with image_channels."
        )


class AttentionReduce(nn.Module):
    """Sum over ingredients, weighted by ``softmax(w tanh(W e))``; padding has the weight 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.weight = nn.Linear(width, width), nn.Linear(width, 1, bias=False)

    def weights(self, x: Float[Tensor, "B N E"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """The weights; they sum to 1."""
        return self.weight(self.hidden(x).tanh()).squeeze(-1).masked_fill(~mask, -math.inf).softmax(-1)

    def forward(self, x: Float[Tensor, "B N E"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B E"]:
        """The weighted sum."""
        return torch.einsum("bn,bne->be", self.weights(x, mask), x)


class PortionCalorieNet(nn.Module):
    """Tupc: unit, portion and energy of each ingredient of a list, and the energy of all.

    Parameters
    ----------
    ingredients : int
        Size of the vocabulary. Number 0 is padding.
    units : int, default: 6
        Number of units.
    width : int, default: 256
        Of the embeddings; the paper has 1024, which is 84 million parameters in the decoders.
    layers, heads, head_width : int, default: 2, 8, 64
        Of each decoder, as in the paper. Without layers, each ingredient is estimated alone (the paper's NNupc).
    image_channels : int, optional
        Channels of the map of image features. Without it there is no image: the decoders see one learned vector.
    image_encoder : nn.Module, optional
        From photos (B, 3, side, side) to that map (B, C, H, W), trained with the rest; by default the map is given.
    dropout : float, default: 0.1
        In the decoders.

    Raises
    ------
    HyperparameterError
        If ``width`` is odd, a size is below 1, or ``image_encoder`` comes without ``image_channels``.

    Examples
    --------
    >>> net = PortionCalorieNet(202, width=64, head_width=16).eval()
    >>> out = net(torch.tensor([[3, 17, 0]]))
    >>> out.units.shape, out.total.shape
    (torch.Size([1, 3, 6]), torch.Size([1]))
    """

    def __init__(
        self,
        ingredients: int,
        units: int = 6,
        *,
        width: int = 256,
        layers: int = 2,
        heads: int = 8,
        head_width: int = 64,
        image_channels: int | None = None,
        image_encoder: nn.Module | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if image_encoder is not None and image_channels is None:
            raise HyperparameterError("image_channels", found=None, expected="the channels that image_encoder returns")
        self.image_encoder = image_encoder
        sizes = {"ingredients": ingredients, "units": units, "heads": heads, "head_width": head_width}
        for name, size in sizes.items():
            if size < 1:
                raise HyperparameterError(name, found=size, expected=">= 1")
        if layers < 0:
            raise HyperparameterError("layers", found=layers, expected=">= 0")
        if width < 2 or width % 2:
            raise HyperparameterError("width", found=width, expected="an even number: the unit stream has half of it")
        half = width // 2
        shape = (image_channels, layers, heads, head_width, dropout)
        self.embedding = nn.Embedding(ingredients + 1, width, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.unit_in = nn.Linear(width, half)
        self.portion_in = nn.Linear(width, half)
        self.align_in = nn.Linear(half + width, width)
        self.unit_decoder = Decoder(half, *shape)
        self.portion_decoder, self.align_decoder, self.calorie_decoder = (Decoder(width, *shape) for _ in range(3))
        self.unit_out = nn.Linear(half, units)
        self.portion_out, self.align_out, self.calorie_out = (nn.Linear(width, 1) for _ in range(3))
        self.reduce_calorie, self.reduce_align = AttentionReduce(width), AttentionReduce(width)
        self.total_calorie, self.total_align = nn.Linear(width, half), nn.Linear(width, half)
        self.total_out = nn.Linear(width, 1)

    def forward(
        self,
        ingredients: Int[Tensor, "B N"],
        image: Float[Tensor, "B C H W"] | None = None,
        mask: Bool[Tensor, "B N"] | None = None,
    ) -> KitOutput:
        """Estimate; slots with ingredient 0 are padding unless a mask says otherwise.

        ``image`` is a map of features, or photos (B, 3, side, side) where the network has an encoder of its own.

        Raises
        ------
        ShapeError
            If a recipe has no ingredient, or the image is missing or given to a network without ``image_channels``.
        """
        mask = ingredients != 0 if mask is None else mask
        if self.image_encoder is not None and image is not None:
            image = self.image_encoder(image)
        if not mask.any(1).all():
            raise ShapeError("a recipe of the batch", found="no ingredient", expected="at least one")
        embedded = self.embedding(ingredients)
        unit_in = self.unit_in(embedded)
        unit = self.unit_decoder(unit_in, image, mask)
        both = torch.cat((unit_in, unit), -1)
        portion = self.portion_decoder(both, image, mask)
        align = self.align_decoder(self.align_in(torch.cat((self.portion_in(both), portion), -1)), image, mask)
        calorie = self.calorie_decoder(embedded, image, mask)
        reduced = torch.cat(
            (
                self.total_calorie(self.reduce_calorie(calorie, mask)),
                self.total_align(self.reduce_align(align, mask)),
            ),
            -1,
        )
        return KitOutput(
            self.unit_out(unit),
            self.portion_out(portion).squeeze(-1),
            self.calorie_out(calorie).squeeze(-1),
            self.align_out(align).squeeze(-1),
            self.total_out(reduced).squeeze(-1),
        )


@torch.no_grad()
def begin_at_means(network: nn.Module, samples: Sequence[Mapping[str, Tensor]]) -> None:
    """Set the output biases to the means of what is to be learned, which saves the first epochs of drift.

    Parameters
    ----------
    network : nn.Module
        With the linear layers ``calorie_out``, ``align_out`` and ``portion_out``, and ``total_out`` if the total has a
        layer of its own.
    samples : sequence of mapping of str to Tensor
        From `RecipeTable.samples`: ``kcal``, ``mask``, ``portion``, ``total``.
    """
    stacked = {name: torch.stack([sample[name] for sample in samples]) for name in ("kcal", "mask", "portion", "total")}
    mean = (stacked["kcal"] * stacked["mask"]).sum() / stacked["mask"].sum()
    portion = stacked["portion"].nanmean().nan_to_num()
    means = {"calorie_out": mean, "align_out": mean, "portion_out": portion, "total_out": stacked["total"].mean()}
    for name, value in means.items():
        if hasattr(network, name):
            network.get_parameter(f"{name}.bias").fill_(value)


def unit_weights(counts: Sequence[int]) -> Float[Tensor, "U"]:
    """Weights of the units' cross-entropy: ``n / (U n_u)``, from 0.2 to 5; a unit that never occurs gets 5.

    Examples
    --------
    >>> [round(weight, 3) for weight in unit_weights([50, 30, 10, 5, 3, 2]).tolist()]
    [0.333, 0.556, 1.667, 3.333, 5.0, 5.0]
    """
    found = torch.tensor(counts, dtype=torch.float32)
    return (found.sum() / (len(counts) * found.clamp_min(1e-9))).clamp(0.2, 5.0)


def kit_loss(
    output: KitOutput,
    target: Mapping[str, Tensor],
    *,
    weights: Float[Tensor, "U"] | None = None,
    parts: Mapping[str, float] = LOSSES,
) -> Float[Tensor, ""]:
    r"""Sum of the weighted losses of energy, unit, portion, aligned energy and total.

    Parameters
    ----------
    output : KitOutput
        From the network.
    target : mapping of str to Tensor
        ``mask`` (B N), ``unit`` (B N), ``portion`` (B N, NaN where it is not known), ``kcal`` (B N) and ``total`` (B),
        in the network's scale.
    weights : Tensor, optional
        Of the units, from `unit_weights`.
    parts : mapping of str to float
        Weight of each part; one that is left out counts 0.

    Raises
    ------
    HyperparameterError
        If a part is not known.
    """
    unknown = set(parts) - set(LOSSES)
    if unknown:
        raise HyperparameterError("parts of the loss", found=sorted(unknown), expected=", ".join(LOSSES))
    mask = target["mask"]
    count = mask.sum().clamp_min(1)
    squared = lambda given, wanted: ((given - wanted).square() * mask).sum() / count  # noqa: E731
    losses = output.total.new_zeros(())
    if parts.get("calorie"):
        losses = losses + parts["calorie"] * squared(output.kcal, target["kcal"])
    if parts.get("align"):
        losses = losses + parts["align"] * squared(output.aligned, target["kcal"])
    if parts.get("unit"):
        losses = losses + parts["unit"] * functional.cross_entropy(
            output.units[mask], target["unit"][mask], weight=weights
        )
    if parts.get("portion"):
        known = mask & target["portion"].isfinite()
        error = (output.portions - target["portion"].nan_to_num()).square() * known
        losses = losses + parts["portion"] * error.sum() / known.sum().clamp_min(1)
    if parts.get("total"):
        losses = losses + parts["total"] * (output.total - target["total"]).square().mean()
    return losses
