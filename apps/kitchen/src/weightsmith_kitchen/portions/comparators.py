"""The paper's NNcalories and NNupc: each ingredient is estimated alone by a small MLP, and energies are summed.

Legend: ``B`` recipes, ``N`` slots of ingredients, ``E`` width, ``C`` channels and ``H W`` places of the image.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError, ShapeError
from weightsmith_kitchen.portions.network import KitOutput, refuse_image

__all__ = ["IngredientMLP"]


class IngredientMLP(nn.Module):
    """Unit, portion and energy of each ingredient without a look at the others; the total is the sum of the energies.

    Trained with all parts of `kit_loss` it is NNupc, with ``calorie`` and ``total`` alone NNcalories. The image is
    averaged over its places and concatenated to each ingredient's embedding. As in `PortionCalorieNet` the portion
    reads what gave the unit, and the aligned energy what gave the portion.

    Parameters
    ----------
    ingredients : int
        Size of the vocabulary. Number 0 is padding.
    units : int, default: 6
        Number of units.
    width : int, default: 256
        Of the embeddings and hidden layers.
    image_channels : int, optional
        Channels of the map of image features. Without it there is no image.
    image_encoder : nn.Module, optional
        From photos to that map, trained with the rest; by default the map is given.
    dropout : float, default: 0.1
        After each hidden layer.

    Raises
    ------
    HyperparameterError
        If a size is below 1.

    Examples
    --------
    >>> net = IngredientMLP(202, width=64).eval()
    >>> found = net(torch.tensor([[3, 17, 0, 0]]))
    >>> bool(torch.isclose(found.total, found.kcal[:, :2].sum(1)).all())
    True
    """

    def __init__(
        self,
        ingredients: int,
        units: int = 6,
        *,
        width: int = 256,
        image_channels: int | None = None,
        image_encoder: nn.Module | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        for name, size in {"ingredients": ingredients, "units": units, "width": width}.items():
            if size < 1:
                raise HyperparameterError(name, found=size, expected=">= 1")

        def hidden(inputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout))

        self.embedding = nn.Embedding(ingredients + 1, width, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.image = nn.Linear(image_channels, width) if image_channels is not None else None
        wide = width if image_channels is None else 2 * width
        self.unit_hidden, self.calorie_hidden = (nn.Sequential(hidden(wide), hidden(width)) for _ in range(2))
        self.portion_hidden, self.align_hidden = hidden(wide + width), hidden(2 * width)
        self.unit_out = nn.Linear(width, units)
        self.portion_out, self.align_out, self.calorie_out = (nn.Linear(width, 1) for _ in range(3))

    def forward(
        self,
        ingredients: Int[Tensor, "B N"],
        image: Float[Tensor, "B C H W"] | None = None,
        mask: Bool[Tensor, "B N"] | None = None,
    ) -> KitOutput:
        """Estimate; slots with ingredient 0 are padding unless a mask says otherwise.

        Raises
        ------
        ShapeError
            If the image is missing, or given to a network without ``image_channels``.
        """
        mask = ingredients != 0 if mask is None else mask
        if self.image_encoder is not None and image is not None:
            image = self.image_encoder(image)
        read = self.embedding(ingredients)
        if self.image is not None:
            if image is None:
                raise ShapeError(
                    "image of the network", expected="a map of features", do="Make it without image_channels."
                )
            seen = self.image(image.mean((2, 3)))[:, None].expand_as(read)
            read = torch.cat((read, seen), -1)
        else:
            refuse_image(image, "network")
        unit = self.unit_hidden(read)
        portion = self.portion_hidden(torch.cat((read, unit), -1))
        align = self.align_hidden(torch.cat((unit, portion), -1))
        kcal = self.calorie_out(self.calorie_hidden(read)).squeeze(-1)
        return KitOutput(
            self.unit_out(unit),
            self.portion_out(portion).squeeze(-1),
            kcal,
            self.align_out(align).squeeze(-1),
            (kcal * mask).sum(1),
        )
