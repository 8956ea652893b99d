"""From a photo, or a box in it, to the tensor that a network reads: one resize, which crops at the same time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from weightsmith_kitchen.errors import ModelError
from weightsmith_kitchen.photos.boxes import Box, with_margin
from weightsmith_kitchen.photos.images import original_size

__all__ = ["Preprocess", "Views"]

Views: TypeAlias = Literal["one", "flips", "ten"]
"""What a prediction is averaged over: the photo alone, with its mirror image, or ten crops."""

TEN_SHARE = 224 / 256
"""Share of the region's sides that each of ten crops has, as in the paper's training."""

GREY = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


@dataclass(frozen=True)
class Preprocess:
    """How photos are scaled for a network.

    Attributes
    ----------
    side : int
        Pixels of a side of the square input.
    shape : {"warp", "crop"}
        ``"warp"`` scales the whole region to the square, as DeepFood does; ``"crop"`` takes the central square of it.
    share : float
        Share of the region's sides, around its center, that is read: the paper reads 224 of 256 pixels.
    margin : float
        What is added to a box on each side, as a share of its width and height.
    mean, std : tuple of float
        Per channel, of pixels in [0, 1]; the input is ``(pixel - mean) / std``.

    Examples
    --------
    >>> Preprocess(side=64)(Image.new("RGB", (100, 50), "white")).shape
    torch.Size([3, 64, 64])
    """

    side: int = 224
    shape: Literal["warp", "crop"] = "warp"
    share: float = 1.0
    margin: float = 0.1
    mean: tuple[float, float, float] = (127 / 255,) * 3
    std: tuple[float, float, float] = (128 / 255,) * 3

    def __post_init__(self) -> None:
        wrong = {
            "side": not isinstance(self.side, int) or not 16 <= self.side <= 2048,
            "shape": self.shape not in ("warp", "crop"),
            "share": not 0 < self.share <= 1,
            "margin": not 0 <= self.margin <= 2,
            "mean": len(self.mean) != 3 or not all(map(math.isfinite, self.mean)),
            "std": len(self.std) != 3 or not all(math.isfinite(value) and value > 0 for value in self.std),
        }
        for name, bad in wrong.items():
            if bad:
                raise ModelError(f"preprocessing: {name}", found=getattr(self, name), do="Correct config.json.")

    def region(self, image: Image.Image, box: Box | None = None) -> Box:
        """The part of an image that is read, in its own pixels.

        Parameters
        ----------
        image : Image
            As of :func:`~weightsmith_kitchen.photos.images.open_photo`.
        box : Box, optional
            In pixels of the photo at its full size; the margin is added here.
        """
        whole = Box(0.0, 0.0, float(image.width), float(image.height))
        if box is not None:
            full = original_size(image)
            grown = with_margin(box, self.margin, full)
            x, y = image.width / full[0], image.height / full[1]
            whole = Box(grown.xmin * x, grown.ymin * y, grown.xmax * x, grown.ymax * y)
        width, height = whole.width * self.share, whole.height * self.share
        if self.shape == "crop":
            width = height = min(width, height)
        x, y = (whole.xmin + whole.xmax) / 2, (whole.ymin + whole.ymax) / 2
        return _inside(Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2), image.size)

    def __call__(self, image: Image.Image, box: Box | None = None, *, flip: bool = False) -> Float[Tensor, "3 S S"]:
        """Scale a photo, or a box in it, to the input of the network."""
        return self._tensor(image, self.region(image, box), flip)

    def views(self, image: Image.Image, box: Box | None = None, *, kind: Views = "one") -> list[Float[Tensor, "3 S S"]]:
        """The inputs whose logits a prediction averages.

        Parameters
        ----------
        image, box
            As for a call.
        kind : {"one", "flips", "ten"}, default: "one"
            ``"flips"`` adds the mirror image; ``"ten"`` takes the four corners and the center of the region, each
            with 7/8 of its sides, and their mirror images.

        Raises
        ------
        ModelError
            If the kind is unknown.

        Examples
        --------
        >>> [len(Preprocess(side=32).views(Image.new("RGB", (50, 40)), kind=kind)) for kind in ("one", "flips", "ten")]
        [1, 2, 10]
        """
        whole = self.region(image, box)
        if kind not in ("one", "flips", "ten"):
            raise ModelError("views", found=kind, expected='"one", "flips" or "ten"')
        if kind == "one":
            return [self._tensor(image, whole, False)]
        regions = [whole]
        if kind == "ten":
            width, height = whole.width * TEN_SHARE, whole.height * TEN_SHARE
            corners = [(x, y) for y in (0.0, 1.0) for x in (0.0, 1.0)] + [(0.5, 0.5)]
            starts = [
                (whole.xmin + x * (whole.width - width), whole.ymin + y * (whole.height - height)) for x, y in corners
            ]
            regions = [_inside(Box(x, y, x + width, y + height), image.size) for x, y in starts]
        return [self._tensor(image, region, flip) for region in regions for flip in (False, True)]

    def augmented(
        self,
        image: Image.Image,
        box: Box | None = None,
        *,
        generator: torch.Generator,
        smallest: float = 0.6,
        color: float = 0.0,
    ) -> Float[Tensor, "3 S S"]:
        """A random part of the region, mirrored at random, with random colors.

        Parameters
        ----------
        image, box
            As for a call.
        generator : torch.Generator
            What is drawn from.
        smallest : float, default: 0.6
            Smallest share of the region's area; the ratio of the sides changes by up to 4/3.
        color : float, default: 0
            Brightness, contrast and saturation are each multiplied by a factor drawn from ``1 - color`` to
            ``1 + color``.
        """
        region = self.region(image, box)
        area, ratio, left, top, mirrored = torch.rand(5, generator=generator).tolist()
        scale = math.sqrt(smallest + (1 - smallest) * area)
        stretch = math.exp((2 * ratio - 1) * math.log(4 / 3) / 2)
        width = min(region.width, region.width * scale * stretch)
        height = min(region.height, region.height * scale / stretch)
        x = region.xmin + left * (region.width - width)
        y = region.ymin + top * (region.height - height)
        factors = None
        if color:
            factors = 1 + color * (2 * torch.rand(3, generator=generator).numpy() - 1)
        return self._tensor(image, _inside(Box(x, y, x + width, y + height), image.size), mirrored < 0.5, factors)

    def decode_side(self, box_share: float = 1.0) -> int:
        """Pixels of the shorter side of a photo that are enough, for a region of that share of the photo's sides."""
        return math.ceil(self.side / (self.share * max(min(box_share, 1.0), 0.05)))

    def to_dict(self) -> dict[str, Any]:
        """The attributes, as JSON has them."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Read what :meth:`to_dict` wrote.

        Raises
        ------
        ModelError
            If a value is missing, unknown or out of range.

        Examples
        --------
        >>> Preprocess.from_dict(Preprocess(side=128).to_dict()) == Preprocess(side=128)
        True
        """
        try:
            return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
        except (TypeError, KeyError, ValueError) as error:
            raise ModelError("preprocessing", found=dict(values), do="Copy config.json again.") from error

    @classmethod
    def of_processor(cls, processor: Any, **changes: Any) -> Preprocess:
        """Read the size and the normalization of a Hugging Face image processor."""
        size = getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {}
        side = size.get("height") or size.get("shortest_edge") or cls.side
        normalized = getattr(processor, "do_normalize", True)
        mean: Sequence[float] = getattr(processor, "image_mean", None) or (0.5,) * 3
        std: Sequence[float] = getattr(processor, "image_std", None) or (0.5,) * 3
        if not normalized:
            mean, std = (0.0,) * 3, (1.0,) * 3
        values = {"side": int(side), "mean": tuple(map(float, mean)), "std": tuple(map(float, std)), **changes}
        return cls(**values)

    def _tensor(
        self, image: Image.Image, region: Box, flip: bool, factors: Float[np.ndarray, "3"] | None = None
    ) -> Tensor:
        square = (self.side, self.side)
        small = image.resize(square, Image.Resampling.BICUBIC, box=(*region,), reducing_gap=3.0)
        pixels = np.asarray(small, dtype=np.float32)
        if flip:
            pixels = pixels[:, ::-1]
        if factors is not None:
            pixels = _recolored(pixels, factors)
        mean = np.asarray(self.mean, dtype=np.float32) * np.float32(255)
        std = np.asarray(self.std, dtype=np.float32) * np.float32(255)
        return torch.from_numpy(np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)))


def _recolored(pixels: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Pixels with other brightness, contrast around the mean brightness, and saturation around grey."""
    brightness, contrast, saturation = factors.tolist()
    grey = pixels @ np.asarray(GREY, dtype=np.float32)
    center = np.float32(brightness) * grey.mean()
    # each step is linear in the pixels: together they are a pixel's share, a share of its grey, and an offset
    own, shared = brightness * contrast * saturation, brightness * contrast * (1 - saturation)
    return np.clip(
        pixels * np.float32(own) + (grey * np.float32(shared))[..., None] + center * np.float32(1 - contrast), 0, 255
    )


def _inside(box: Box, size: tuple[int, int]) -> Box:
    """The box without what rounding put over the edge; at least a pixel wide."""
    width, height = size
    xmin, ymin = min(max(box.xmin, 0.0), width - 1.0), min(max(box.ymin, 0.0), height - 1.0)
    return Box(xmin, ymin, max(min(box.xmax, float(width)), xmin + 1), max(min(box.ymax, float(height)), ymin + 1))
