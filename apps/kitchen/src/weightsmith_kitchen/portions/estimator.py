"""Train the meal kit's network on recipes and use it: from names of ingredients to units, portions and energies."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from weightsmith.core.io import atomic_output, read_json
from weightsmith.core.models import evaluation_mode
from weightsmith.core.training import Fit, FitOptions, fit
from weightsmith_kitchen.errors import ModelError
from weightsmith_kitchen.portions.network import (
    LOSSES,
    KitOutput,
    PortionCalorieNet,
    begin_at_means,
    kit_loss,
    unit_weights,
)
from weightsmith_kitchen.portions.recipes import LabeledRecipe, RecipeTable

__all__ = ["PortionEstimate", "PortionEstimator"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, slots=True)
class PortionEstimate:
    """What is estimated for one ingredient.

    Attributes
    ----------
    name, unit : str
        The ingredient, and its most probable unit.
    probability : float
        Of the unit.
    portion : float
        How many units; >= 0.
    kcal : float
        Energy, by the decoder of energies; >= 0.
    kcal_aligned : float
        Energy by the decoder that saw unit and portion: where the two differ much, neither is to be trusted.
    """

    name: str
    unit: str
    probability: float
    portion: float
    kcal: float
    kcal_aligned: float


class PortionEstimator:
    """Units, portions and energies of ingredients that are known by name, learned from recipes.

    Parameters
    ----------
    table : RecipeTable
        From `RecipeTable.learn`.
    image_encoder : nn.Module, optional
        From photos (B, 3, side, side) to a map of features with ``image_channels`` channels. Without it there are no
        photos.
    **options
        Of `PortionCalorieNet`: width, layers, heads, head_width, dropout, image_channels.

    Examples
    --------
    >>> from weightsmith_kitchen.portions import LabeledIngredient, LabeledRecipe
    >>> egg, milk = LabeledIngredient("egg", "count", 2, 140), LabeledIngredient("milk", "cup", 1, 150)
    >>> recipes = [LabeledRecipe((egg, milk)), LabeledRecipe((egg,))]
    >>> estimator = PortionEstimator(RecipeTable.learn(recipes, fewest=1), width=32, head_width=8)
    >>> _ = estimator.fit(recipes, epochs=40, learning_rate=3e-3)
    >>> [found.unit for found in estimator.estimate(["egg", "milk"])[0]]
    ['count', 'cup']
    """

    def __init__(self, table: RecipeTable, *, image_encoder: nn.Module | None = None, **options: Any) -> None:
        self.table, self.options = table, options
        self.network: nn.Module = PortionCalorieNet(
            len(table.ingredients), len(table.units), image_encoder=image_encoder, **options
        )
        self._begun = False

    def fit(
        self,
        recipes: Sequence[LabeledRecipe],
        photos: Sequence[Tensor] | None = None,
        *,
        parts: Mapping[str, float] = LOSSES,
        seed: int = 0,
        **options: Unpack[FitOptions],
    ) -> Fit:
        """Learn from recipes; another call, or one after `from_pretrained`, goes on from the weights as they are.

        Parameters
        ----------
        recipes : sequence of LabeledRecipe
            To train on.
        photos : sequence of Tensor, optional
            One (3, side, side) per recipe, for a network with an encoder of images.
        parts : mapping of str to float
            Weights of the parts of the loss, see `kit_loss`.
        seed : int, default: 0
            Of order and dropout.
        **options
            As in `weightsmith.core.training.fit`; by default 60 epochs of Adam at 1e-4 in batches of 64.

        Raises
        ------
        RecipeError
            If a recipe has no ingredient, a number that is out of range, or a unit that is not in the table.
        """
        self.table.check(recipes)
        samples = self.table.samples(recipes, photos)
        if not self._begun:
            begin_at_means(self.network, samples)
            self._begun = True
        weights = unit_weights(self.table.unit_counts)

        def loss(network: Any, batch: Mapping[str, Tensor]) -> Tensor:
            device = batch["total"].device
            output = network(batch["ingredients"], batch.get("image"), mask=batch["mask"])
            return kit_loss(output, batch, weights=weights.to(device), parts=parts)

        chosen: FitOptions = {"epochs": 60, "learning_rate": 1e-4, "batch_size": 64, **options}
        return fit(self.network, samples, loss=loss, seed=seed, **chosen)

    @torch.no_grad()
    def outputs(
        self, recipes: Sequence[LabeledRecipe], photos: Sequence[Tensor] | None = None, batch_size: int = 256
    ) -> KitOutput:
        """What the network says of recipes, in its own scale; recipes without a known ingredient are left out."""
        samples = self.table.samples(recipes, photos)
        found = []
        with evaluation_mode(self.network):
            for start in range(0, len(samples), batch_size):
                part = samples[start : start + batch_size]
                names = ("ingredients", "mask") if photos is None else ("ingredients", "mask", "image")
                batch = {name: torch.stack([sample[name] for sample in part]) for name in names}
                found.append(self.network(batch["ingredients"], batch.get("image"), mask=batch["mask"]))
        return KitOutput(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    @torch.no_grad()
    def estimate(self, names: Sequence[str], photo: Tensor | None = None) -> tuple[list[PortionEstimate], float]:
        """Estimate a list of ingredients.

        Parameters
        ----------
        names : sequence of str
            Ingredients of the vocabulary.
        photo : Tensor of shape (3, side, side), optional
            For a network with an encoder of images.

        Returns
        -------
        list of PortionEstimate, float
            One per ingredient, and the energy of all by the head of the total.

        Raises
        ------
        RecipeError
            If a name is not in the vocabulary.
        ShapeError
            If the photo is missing, or given to a network without ``image_channels``.
        """
        with evaluation_mode(self.network):
            output = self.network(self.table.encode(names), None if photo is None else photo[None])
        scale = self.table.kcal_scale
        made = []
        for place, name in enumerate(names):
            probability, unit = output.units[0, place].softmax(-1).max(-1)
            named = self.table.units[int(unit)]
            made.append(
                PortionEstimate(
                    name,
                    named,
                    float(probability),
                    max(float(output.portions[0, place]) * self.table.portion_scale[named], 0.0),
                    max(float(output.kcal[0, place]) * scale, 0.0),
                    max(float(output.aligned[0, place]) * scale, 0.0),
                )
            )
        return made, max(float(output.total[0]) * scale, 0.0)

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the estimator as a folder, whole or not at all."""
        config = {"model_type": "portion-calorie-net", "options": self.options, "table": self.table.to_dict()}
        with atomic_output(folder, overwrite=overwrite) as scratch:
            save_file(self.network.state_dict(), scratch / WEIGHTS, metadata={"format": "pt"})
            (scratch / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, image_encoder: nn.Module | None = None
    ) -> PortionEstimator:
        """Read what `save_pretrained` wrote; an encoder of images is passed again, its weights are read.

        Raises
        ------
        ModelError
            If it is something else, or its weights do not fit.
        """
        config = read_json(Path(folder) / CONFIG)
        if config.get("model_type") != "portion-calorie-net":
            raise ModelError(f"{folder}", found=str(config.get("model_type")), expected="portion-calorie-net")
        made = cls(RecipeTable.from_dict(config["table"]), image_encoder=image_encoder, **config["options"])
        made._begun = True
        try:
            made.network.load_state_dict(load_file(Path(folder) / WEIGHTS))
        except (RuntimeError, OSError) as error:
            raise ModelError(f"weights of {folder} do not fit", found=str(error).splitlines()[0]) from None
        return made
