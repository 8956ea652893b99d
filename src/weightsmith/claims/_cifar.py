"""CIFAR-10 as JPEG, of the user's own: the images, and their features by EfficientNet-Lite0, computed once.

The folder holds ``train.npz`` and ``test.npz`` with ``jpeg`` (bytes of all images), ``offsets`` and ``labels``.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, starmap
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from platformdirs import user_cache_path
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.io import atomic_output
from weightsmith.core.progress import track
from weightsmith.embedded import open_model

__all__ = [
    "CLASSES",
    "FOLDER",
    "PHOTOS",
    "SIZES",
    "Size",
    "device_of",
    "features",
    "images",
    "photo_features",
    "resnet",
    "scaled",
    "shifted_and_mirrored",
]

FOLDER, PHOTOS = "cifar10-jpeg", "apps/grocery-store/grocery_128.zip"
CLASSES, SIDE, BATCH = 10, 32, 64


@dataclass(frozen=True)
class Size:
    """How much of the data an experiment reads.

    Attributes
    ----------
    train, test : int
        Images per class.
    side : int
        Pixels that an image is enlarged to for EfficientNet-Lite0.
    """

    train: int
    test: int
    side: int


SIZES = {"cpu": Size(train=500, test=200, side=128), "gpu": Size(train=5000, test=1000, side=224)}


def device_of(scale: str) -> torch.device:
    """The device of a scale: CUDA at ``"gpu"``, where there is one."""
    return torch.device("cuda" if scale == "gpu" and torch.cuda.is_available() else "cpu")


def images(
    folder: Path, part: Literal["train", "test"], per_class: int
) -> tuple[UInt8[Tensor, "N 3 32 32"], Int[Tensor, "N"]]:
    """Return as many images of each class, and their classes, in a fixed shuffled order."""
    with np.load(folder / f"{part}.npz") as stored:
        data, offsets, labels = stored["jpeg"].tobytes(), stored["offsets"].tolist(), torch.tensor(stored["labels"])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    places = functional.one_hot(labels[order].long(), CLASSES).cumsum(0).gather(1, labels[order].long()[:, None])
    rows = order[places[:, 0] <= per_class]
    decoded = [_pixels(data[offsets[row] : offsets[row + 1]]) for row in rows.tolist()]
    return torch.stack(decoded), labels[rows].long()


def features(
    folder: Path, part: Literal["train", "test"], scale: str
) -> tuple[Float[Tensor, "N 1280"], Int[Tensor, "N"]]:
    """Return the pooled features of the images, and their classes; later runs read them from the cache folder."""
    size = SIZES[scale]
    count = getattr(size, part)
    kept = _cached(f"cifar10-{part}-{count}-{size.side}", scale, lambda: images(folder, part, count))
    return kept["features"], kept["labels"]


def photo_features(scale: str, archive: Path) -> Float[Tensor, "N 1280"]:
    """Return the features of photographs of groceries, reduced to the size of CIFAR-10's images first."""

    def read() -> tuple[Tensor, Tensor]:
        with zipfile.ZipFile(archive) as file:
            names = sorted(name for name in file.namelist() if name.startswith("train/") and name.endswith(".jpg"))
            pixels = torch.stack([_pixels(file.read(name)) for name in names])
        return pixels, torch.zeros(len(names), dtype=torch.long)

    return _cached(f"grocery-train-{SIZES[scale].side}", scale, read)["features"]


def scaled(pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
    """Return the images with a mean of about zero and a deviation of about one."""
    return (pixels.float() - 120) / 64


def shifted_and_mirrored(x: Float[Tensor, "N 3 H W"], generator: torch.Generator) -> Float[Tensor, "N 3 H W"]:
    """Shift the images of a batch by up to four pixels, with zeros at the edges, and mirror every other at random."""
    down, right = torch.randint(9, (2,), generator=generator).tolist()
    shifted = functional.pad(x, (4, 4, 4, 4))[:, :, down : down + x.shape[2], right : right + x.shape[3]]
    mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(mirrored[:, None, None, None], shifted.flip(3), shifted)


class Residual(nn.Module):
    """Two convolutions with batch normalization, added to their input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


def resnet(blocks: int, width: int, stride: int = 1) -> nn.Sequential:
    """A residual network for small images, without a head: its ``4 * width`` features are not negative.

    Three stages of so many blocks: ResNet-32 has 5 of width 16.
    """
    widths = [width] * (blocks + 1) + [2 * width] * blocks + [4 * width] * blocks
    stem = (nn.Conv2d(3, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(*stem, *starmap(Residual, pairwise(widths)), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _pixels(jpeg: bytes) -> UInt8[Tensor, "3 32 32"]:
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    if image.size != (SIDE, SIDE):
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        image = image.resize((SIDE, SIDE), box=(left, top, left + edge, top + edge))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _cached(name: str, scale: str, read: Callable[[], tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    path = user_cache_path("weightsmith", ensure_exists=True) / f"efficientnet-lite0-{name}.safetensors"
    if not path.exists():
        pixels, labels = read()
        with atomic_output(path, overwrite=True) as target:
            save_file({"features": _encoded(pixels, scale), "labels": labels}, target)
    return load_file(path)


@torch.no_grad()
def _encoded(pixels: UInt8[Tensor, "N 3 H W"], scale: str) -> Float[Tensor, "N 1280"]:
    """What the classifier of EfficientNet-Lite0 receives, for images enlarged to the scale's size."""
    device, side = device_of(scale), SIZES[scale].side
    model = open_model("embedded:efficientnet-lite0").model.to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.get_submodule("_fc").register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].cpu()))
    found: list[Tensor] = []
    for part in track(pixels.split(BATCH), "features of EfficientNet-Lite0"):
        enlarged = functional.interpolate(part.to(device).float(), (side, side), mode="bicubic", antialias=True)
        model(((enlarged - 127) / 128).contiguous(memory_format=torch.channels_last))
    return torch.cat(found)
