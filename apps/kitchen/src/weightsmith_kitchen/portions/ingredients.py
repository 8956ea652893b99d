r"""The meal kit's first stage: from a dish and an image to a main and an optional list of ingredients.

A transformer decoder writes the two lists one ingredient at a time, as in A. B. Jelodar, Y. Sun, arXiv:2112.09839.
Its input is the dish, the main ingredients, an end mark, and the optional ingredients; its queries look at the image.
The order within a list means nothing. With :math:`p_t` the probabilities of step :math:`t`, in which what is already
on the list has probability 0, :math:`\hat y = \max_t p_t` and :math:`y` the list as zeros and ones, the set loss is

.. math::

    \mathcal L = 1000\, \mathrm{BCE}(\hat y, y) + \mathrm{BCE}(p_{t,\mathrm{end}}, [t = n])
        + \lvert \textstyle\sum \hat y - n \rvert .

The paper names no loss of this stage; this is the one of Salvador, Drozdzal, Giro-i-Nieto, Romero, "Inverse Cooking",
arXiv:1812.06164, which the paper builds on.

Legend: ``B`` dishes, ``T`` steps, ``V`` vocabulary, ``N`` ingredients, ``C`` channels and ``H W`` places of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.errors import HyperparameterError, ShapeError
from weightsmith.core.models import evaluation_mode
from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.portions.network import DecoderLayer, refuse_image

__all__ = ["MAIN", "OPTIONAL", "IngredientDecoder", "IngredientList", "set_loss"]

MAIN, OPTIONAL = 5, 10
"""Most ingredients of each list, as in the paper."""
END = 0
"""Number of the end mark, which is padding of the lists as well."""


@dataclass(frozen=True, slots=True)
class IngredientList:
    """What is in a dish.

    Attributes
    ----------
    dish : int
        Number of the dish, from 0.
    main, optional : tuple of int
        Numbers of the ingredients, from 1, in the order in which they were written.
    confidences : tuple of float
        Probability of each ingredient when it was written, main ingredients first; 1 where a person chose it.
    """

    dish: int
    main: tuple[int, ...]
    optional: tuple[int, ...]
    confidences: tuple[float, ...]

    @property
    def ingredients(self) -> tuple[int, ...]:
        """Main, then optional ones."""
        return self.main + self.optional


class IngredientDecoder(nn.Module):
    """Main and optional ingredients of a dish, written one at a time; a person may correct one and let it go on.

    Parameters
    ----------
    ingredients, dishes : int
        Sizes of the vocabularies. Ingredients count from 1, dishes from 0.
    width, layers, heads, head_width : int, default: 256, 2, 8, 64
        Of the decoder.
    image_channels : int, optional
        Channels of the map of image features. Without it the decoder sees one learned vector instead.
    image_encoder : nn.Module, optional
        From photos (B, 3, side, side) to that map; by default the map is given.
    main, optional : int, default: 5, 10
        Most ingredients of each list.
    dropout : float, default: 0.1
        In the decoder.

    Raises
    ------
    HyperparameterError
        If a size is below 1, or ``image_encoder`` comes without ``image_channels``.

    Examples
    --------
    >>> decoder = IngredientDecoder(202, 32, width=32, head_width=4).eval()
    >>> found = decoder.generate([7])[0]
    >>> found.dish, len(found.main) <= 5, len(set(found.ingredients)) == len(found.ingredients)
    (7, True, True)
    """

    def __init__(
        self,
        ingredients: int,
        dishes: int,
        *,
        width: int = 256,
        layers: int = 2,
        heads: int = 8,
        head_width: int = 64,
        image_channels: int | None = None,
        image_encoder: nn.Module | None = None,
        main: int = MAIN,
        optional: int = OPTIONAL,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        sizes = {"ingredients": ingredients, "dishes": dishes, "width": width, "layers": layers, "main": main}
        for name, size in {**sizes, "heads": heads, "head_width": head_width, "optional": optional}.items():
            if size < 1:
                raise HyperparameterError(name, found=size, expected=">= 1")
        if image_encoder is not None and image_channels is None:
            raise HyperparameterError("image_channels", found=None, expected="the channels that image_encoder returns")
        self.ingredients, self.dishes, self.main, self.optional = ingredients, dishes, main, optional
        self.image_encoder = image_encoder
        # end mark, ingredients, dishes; the second table tells the lists apart
        self.embedding = nn.Embedding(1 + ingredients + dishes, width)
        self.part = nn.Embedding(2, width)
        for table in (self.embedding, self.part):
            nn.init.normal_(table.weight, std=0.02)
        self.image = nn.Linear(image_channels, width) if image_channels is not None else None  # a 1x1 convolution
        self.blank = nn.Parameter(torch.zeros(1, 1, width)) if image_channels is None else None
        self.layers = nn.ModuleList(DecoderLayer(width, heads, head_width, dropout) for _ in range(layers))
        self.out = nn.Linear(width, 1 + ingredients + dishes)

    def tokens_of(self, image: Tensor | None, count: int) -> Float[Tensor, "B P E"]:
        """The places of the image, at the decoder's width.

        Raises
        ------
        ShapeError
            If the image is missing, or given to a decoder without ``image_channels``.
        """
        if self.image is None:
            refuse_image(image, "decoder")
            assert self.blank is not None
            return self.blank.expand(count, -1, -1)
        if self.image_encoder is not None and image is not None:
            image = self.image_encoder(image)
        if image is None:
            raise ShapeError("image of the decoder", expected="a map of features", do="Make it without image_channels.")
        tokens: Tensor = self.image(image.flatten(2).transpose(1, 2))
        return tokens

    def forward(
        self,
        dish: Int[Tensor, "B"],
        written: Int[Tensor, "B T"],
        tokens: Float[Tensor, "B P E"],
        begun: Int[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B T+1 V"]:
        """Log-probabilities of what comes after the dish and after each ingredient.

        Parameters
        ----------
        dish : Tensor of shape (B,)
            Numbers of the dishes, from 0.
        written : Tensor of shape (B, T)
            What is on the lists, from 1. Where ``begun`` is given, the number 0 at that place is the mark between the
            lists; other zeros are padding, and what is said after them means nothing.
        tokens : Tensor
            From `tokens_of`.
        begun : Tensor of shape (B,), optional
            Place of the mark between the lists; by default the main list is being written.

        Returns
        -------
        Tensor of shape (B, T + 1, V)
            Of the end (number 0), ingredients and dishes. Dishes and what is already written have probability 0.
        """
        steps = written.shape[1]
        place = torch.arange(steps, device=written.device)
        beyond = place >= begun[:, None] if begun is not None else torch.zeros_like(written, dtype=torch.bool)
        x = self.embedding(torch.cat(((dish + 1 + self.ingredients)[:, None], written), 1))
        x = x + self.part(functional.pad(beyond, (1, 0)).long())
        mark = torch.zeros_like(beyond) if begun is None else place == begun[:, None]
        real = functional.pad((written != END) | mark, (1, 0), value=True)
        causal = torch.ones(steps + 1, steps + 1, dtype=torch.bool, device=written.device).tril()
        itself = torch.eye(steps + 1, dtype=torch.bool, device=written.device)
        seen = (causal & real[:, None, :]) | itself  # padding sees itself, or its softmax would be 0/0
        for layer in self.layers:
            x = layer(x, tokens, seen)
        logits: Tensor = self.out(x)
        taken = functional.one_hot(written, logits.shape[-1]).cumsum(1) > 0
        taken = functional.pad(taken, (0, 0, 1, 0))
        taken[..., END] = False
        taken[..., 1 + self.ingredients :] = True
        return logits.masked_fill(taken, -math.inf).log_softmax(-1)

    @torch.no_grad()
    def generate(
        self,
        dishes: Sequence[int],
        image: Float[Tensor, "B C H W"] | None = None,
        *,
        prefixes: Sequence[IngredientList] | None = None,
    ) -> list[IngredientList]:
        """Write the lists: the most probable ingredient at each step.

        Parameters
        ----------
        dishes : sequence of int
            One per image, from 0.
        image : Tensor, optional
            Map of features, or photos where the decoder has an encoder of its own.
        prefixes : sequence of IngredientList, optional
            What each list begins with. A prefix with optional ingredients goes on with these.

        Raises
        ------
        RecipeError
            If a dish is not known.
        """
        for dish in dishes:
            if not 0 <= dish < self.dishes:
                raise RecipeError("dish", found=dish, expected=f"0 to {self.dishes - 1}")
        begins = prefixes or [IngredientList(dish, (), (), ()) for dish in dishes]
        with evaluation_mode(self):
            tokens = self.tokens_of(image, len(dishes))
            return [self._finish(begin, tokens[row : row + 1]) for row, begin in enumerate(begins)]

    def correct(
        self, found: IngredientList, place: int, ingredient: int, image: Float[Tensor, "1 C H W"] | None = None
    ) -> IngredientList:
        """Exchange one ingredient and write what follows anew.

        Parameters
        ----------
        found : IngredientList
            From `generate`.
        place : int
            Which of ``found.ingredients``, from 0.
        ingredient : int
            What it is, from 1. With the ingredient that stands there already nothing changes.
        image : Tensor, optional
            The same as in `generate`, for one dish.

        Raises
        ------
        RecipeError
            If there is no such place or ingredient, or the ingredient stands before that place.
        """
        before = found.ingredients[:place]
        if not 0 <= place < len(found.ingredients):
            raise RecipeError("place of the correction", found=place, expected=f"0 to {len(found.ingredients) - 1}")
        if not 1 <= ingredient <= self.ingredients:
            raise RecipeError("ingredient", found=ingredient, expected=f"1 to {self.ingredients}")
        if ingredient in before:
            raise RecipeError(f"ingredient {ingredient}", found=f"already at place {before.index(ingredient)}")
        if ingredient == found.ingredients[place]:
            return found
        main = (*found.main[:place], ingredient) if place < len(found.main) else found.main
        optional = () if place < len(found.main) else (*found.optional[: place - len(found.main)], ingredient)
        begin = IngredientList(found.dish, main, optional, (*found.confidences[:place], 1.0))
        return self.generate([found.dish], image, prefixes=[begin])[0]

    def _finish(self, begin: IngredientList, tokens: Tensor) -> IngredientList:
        found = begin
        dish = torch.tensor([begin.dish], device=tokens.device)
        in_main = not begin.optional
        while True:
            full = len(found.main) >= self.main if in_main else len(found.optional) >= self.optional
            number, probability = END, 1.0
            if not full:
                written = [*found.main] if in_main else [*found.main, END, *found.optional]
                begun = None if in_main else torch.tensor([len(found.main)], device=tokens.device)
                line = torch.tensor([written], dtype=torch.long, device=tokens.device)
                said = self(dish, line, tokens, begun)[0, -1]
                number, probability = int(said.argmax()), float(said.max().exp())
            if number == END and not in_main:
                return found
            if number == END:
                in_main = False
                continue
            found = IngredientList(
                found.dish,
                (*found.main, number) if in_main else found.main,
                found.optional if in_main else (*found.optional, number),
                (*found.confidences, probability),
            )

    def loss(
        self,
        dish: Int[Tensor, "B"],
        main: Bool[Tensor, "B N"],
        optional: Bool[Tensor, "B N"],
        image: Float[Tensor, "B C H W"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Set loss of both lists.

        The main list follows what the decoder itself writes, as in Inverse Cooking; the optional list as well, after
        all true main ingredients in an order that the generator draws, as in the paper.

        Parameters
        ----------
        dish : Tensor of shape (B,)
            Numbers of the dishes, from 0.
        main, optional : Tensor of shape (B, N)
            Which ingredients are on each list; column 0 is the ingredient 1.
        image : Tensor, optional
            As in `generate`.
        generator : torch.Generator, optional
            Of the order of the true main ingredients.
        """
        tokens = self.tokens_of(image, len(dish))
        first = self._own(
            dish, tokens, torch.zeros(len(dish), 0, dtype=torch.long, device=dish.device), None, self.main
        )
        loss = set_loss(self(dish, first, tokens), main)
        order = torch.rand(main.shape, generator=generator).to(dish.device).masked_fill(~main, 2.0).argsort(1)
        longest = int(main.sum(1).max())
        kept = order[:, :longest] + 1
        begun = main.sum(1)
        place = torch.arange(longest + 1, device=dish.device)
        start = torch.where(place < begun[:, None], functional.pad(kept, (0, 1)), END)
        second = self._own(dish, tokens, start, begun, self.optional)
        said = self(dish, second, tokens, begun)
        # the steps of the optional list begin after the mark, whose place differs from dish to dish
        steps = begun[:, None] + 1 + torch.arange(self.optional + 1, device=dish.device)
        steps = steps.clamp_max(said.shape[1] - 1)
        return loss + set_loss(said.gather(1, steps[:, :, None].expand(-1, -1, said.shape[-1])), optional)

    @torch.no_grad()
    def _own(
        self, dish: Tensor, tokens: Tensor, written: Tensor, begun: Tensor | None, steps: int
    ) -> Int[Tensor, "B T"]:
        """Go on with the most probable ingredient, end marks left out of the choice."""
        written = functional.pad(written, (0, steps))
        first = torch.zeros_like(dish) if begun is None else begun + 1
        rows = torch.arange(len(dish), device=dish.device)
        with evaluation_mode(self):
            for step in range(steps):
                said = self(dish, written, tokens, begun)[rows, (first + step).clamp_max(written.shape[1])]
                said[:, END] = -math.inf
                place = first + step
                inside = place < written.shape[1]
                written[rows[inside], place[inside]] = said[inside].argmax(-1)
        return written


def set_loss(
    said: Float[Tensor, "B T V"],
    wanted: Bool[Tensor, "B N"],
    *,
    weights: tuple[float, float, float] = (1000.0, 1.0, 1.0),
) -> Float[Tensor, ""]:
    """The loss of a list whose order means nothing.

    Parameters
    ----------
    said : Tensor of shape (B, T, V)
        Log-probabilities of each step: of the end, of N ingredients, and of more that is not read.
    wanted : Tensor of shape (B, N)
        What is on the list.
    weights : tuple of float, default: (1000, 1, 1)
        Of the list, of the end, and of the number of ingredients.

    Examples
    --------
    >>> said = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]]).log()
    >>> set_loss(said, torch.tensor([[True, False]])).item() < 1e-3
    True
    """
    tiny = 1e-7
    probabilities = said.exp()
    count = wanted.sum(1)
    place = torch.arange(said.shape[1], device=said.device)
    # a step after the end says nothing of the list
    before = (place < count.clamp_min(1)[:, None])[..., None]
    shown = probabilities[..., 1 : 1 + wanted.shape[1]].masked_fill(~before, 0.0).amax(1)
    on_list = functional.binary_cross_entropy(shown.clamp(tiny, 1 - tiny), wanted.float())
    end = probabilities[..., END].clamp(tiny, 1 - tiny)
    counted = place <= count[:, None]
    ended = functional.binary_cross_entropy(end, (place == count[:, None]).float(), reduction="none")
    ending = (ended * counted).sum() / counted.sum()
    number = (shown.sum(1) - count).abs().mean()
    return weights[0] * on_list + weights[1] * ending + weights[2] * number
