"""Image sets to meta-train predictors on: invented alphabets, gratings, and groups of scikit-learn's digits.

Legend: ``T`` sets, ``C`` classes, ``N`` images of a class, ``K`` strokes, ``P`` points on a stroke.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["digits", "glyphs", "textures"]

STROKES = 3
POINTS = 12
PEN = 0.075
CLAIM_GROUPS = ({0, 1, 2, 3, 4}, {5, 6, 7, 8, 9})
"""The claim's own groups of digits; no predictor is meta-trained on them."""


def glyphs(
    sets: int,
    classes: int,
    images: int,
    *,
    size: int = 8,
    jitter: float = 0.06,
    noise: float = 0.08,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "sets classes images 1 size size"]:
    """Draw characters of invented alphabets: each class is one to three random strokes, each image a new handwriting.

    Parameters
    ----------
    sets, classes, images : int
        Alphabets, characters of each, images of each character.
    size : int, default: 8
        Pixels a side.
    jitter : float, default: 0.06
        Standard deviation of the strokes' control points, in image widths.
    noise : float, default: 0.08
        Standard deviation of the pixels; white is 1.
    generator : torch.Generator, optional

    Returns
    -------
    Tensor of shape (sets, classes, images, 1, size, size)
        In [0, 1].

    Examples
    --------
    >>> glyphs(1, 2, 3, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([1, 2, 3, 1, 8, 8])
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    t, c, n = sets, classes, images
    prototype = torch.rand(t, c, 1, STROKES, 3, 2, generator=generator) * 0.8 + 0.1
    drawn = torch.rand(t, c, STROKES, generator=generator) < 0.6
    drawn[..., 0] = True
    control = prototype + jitter * normal(t, c, n, STROKES, 3, 2) - 0.5
    angle = 0.2 * normal(t, c, n, 1, 1)
    stretch, shift = 1 + 0.12 * normal(t, c, n, 1, 1, 2), 0.06 * normal(t, c, n, 1, 1, 2)
    y = control[..., 1] * stretch[..., 1]
    x = control[..., 0] * stretch[..., 0] + 0.15 * normal(t, c, n, 1, 1) * y
    x, y = angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y
    s = torch.linspace(0, 1, POINTS)
    bezier = torch.stack([(1 - s) ** 2, 2 * s * (1 - s), s**2])
    columns = _ink((x + 0.5 + shift[..., 0]) @ bezier, size)
    rows = _ink((y + 0.5 + shift[..., 1]) @ bezier, size)
    pen = columns.unsqueeze(-2) * rows.unsqueeze(-1) * drawn[:, :, None, :, None, None, None]
    strength = 0.85 + 0.15 * torch.rand(t, c, n, 1, 1, generator=generator)
    images_ = pen.flatten(3, 4).amax(3) * strength
    return (images_ + noise * normal(*images_.shape)).clamp(0, 1).unsqueeze(3)


def textures(
    classes: int, images: int, *, size: int = 8, noise: float = 0.5, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "images 1 size size"], Int[Tensor, " images"]]:
    """Draw random gratings: each class has two frequencies, each image new phases and noise.

    Returns
    -------
    images : Tensor of shape (classes * images, 1, size, size)
        Standardized.
    labels : Tensor of shape (classes * images,)

    Examples
    --------
    >>> x, y = textures(2, 3, generator=torch.Generator().manual_seed(0))
    >>> x.shape, y.tolist()
    (torch.Size([6, 1, 8, 8]), [0, 0, 0, 1, 1, 1])
    """
    wave = (torch.rand(classes, 1, 2, 2, 1, 1, generator=generator) - 0.5) * size / 1.5
    phase = torch.rand(classes, images, 2, 1, 1, generator=generator)
    position = torch.arange(size) / size
    angle = wave[..., 0, :, :] * position + wave[..., 1, :, :] * position.unsqueeze(1) + phase
    pattern = torch.cos(2 * torch.pi * angle).sum(2)
    pattern = pattern + noise * torch.randn(pattern.shape, generator=generator)
    return pattern.reshape(-1, 1, size, size), torch.arange(classes).repeat_interleave(images)


def digits(
    classes: int, generator: torch.Generator
) -> tuple[
    Float[Tensor, "images 1 8 8"], Int[Tensor, " images"], Float[Tensor, "others 1 8 8"], Int[Tensor, " others"]
]:
    """Split scikit-learn's digits at random into a group of classes and the others, never as the claim does.

    Parameters
    ----------
    classes : int
        Classes of the group.
    generator : torch.Generator

    Returns
    -------
    x, y, other_x, other_y
        Shuffled images in [0, 1] and labels of the group, counted from 0, and the same of the other classes.

    Examples
    --------
    >>> x, y, _, other_y = digits(7, torch.Generator().manual_seed(0))
    >>> y.unique().tolist(), other_y.unique().tolist()
    ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2])
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=generator)
    x, y = torch.tensor(data.images, dtype=torch.float32)[order].unsqueeze(1) / 16, torch.tensor(data.target)[order]
    permuted = torch.randperm(10, generator=generator)
    while set(permuted[:classes].tolist()) in CLAIM_GROUPS:
        permuted = torch.randperm(10, generator=generator)
    position = permuted.argsort()[y]
    group = position < classes
    return x[group], position[group], x[~group], position[~group] - classes


def _ink(position: Tensor, size: int) -> Tensor:
    """How much of a soft pen at ``position`` falls on each of ``size`` pixels along one axis."""
    pixels = (torch.arange(size) + 0.5) / size
    return torch.exp(-((position.unsqueeze(-1) - pixels) ** 2) / (2 * PEN**2))
