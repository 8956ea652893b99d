"""The features that deep ones replaced: colors by place, and histograms of oriented gradients.

Dalal and Triggs (2005), "Histograms of oriented gradients for human detection".
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

__all__ = ["color_and_gradients"]

SIDE, CELLS, ORIENTATIONS = 128, 8, 9
COLOR_CELLS, LEVELS = 2, 4


def color_and_gradients(pixels: UInt8[np.ndarray, "128 128 3"]) -> Float[np.ndarray, "2020"]:
    """Features of an image of 128 x 128: histograms of 64 colors in 2 x 2 cells, gradients in 8 x 8 cells.

    Gradients are weighed by their length, in nine orientations without sign, and normalized over blocks of 2 x 2
    cells, each clipped at 0.2.

    Examples
    --------
    >>> color_and_gradients(np.zeros((128, 128, 3), np.uint8)).shape
    (2020,)
    """
    return np.concatenate([_colors(pixels), _gradients(pixels)])


def _colors(pixels: np.ndarray) -> np.ndarray:
    code = (pixels // (256 // LEVELS)).astype(np.int64) @ np.array([LEVELS**2, LEVELS, 1])
    half = SIDE // COLOR_CELLS
    cells = code.reshape(COLOR_CELLS, half, COLOR_CELLS, half).transpose(0, 2, 1, 3).reshape(COLOR_CELLS**2, -1)
    counts = np.stack([np.bincount(cell, minlength=LEVELS**3) for cell in cells])
    return np.sqrt(counts / half**2).ravel().astype(np.float32)  # the root makes distances those of Hellinger


def _gradients(pixels: np.ndarray) -> np.ndarray:
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255
    down, right = np.gradient(grey)
    angle = np.mod(np.arctan2(down, right), np.pi) * ORIENTATIONS / np.pi
    length = np.hypot(down, right)
    low = np.floor(angle).astype(np.int64)
    share = angle - low
    side = SIDE // CELLS
    cell = np.arange(SIDE) // side
    base = (cell[:, None] * CELLS + cell[None, :]) * ORIENTATIONS
    bins = np.zeros(CELLS * CELLS * ORIENTATIONS)
    for orientation, weight in ((low, 1 - share), (low + 1, share)):
        place = (base + orientation % ORIENTATIONS).ravel()
        bins += np.bincount(place, (length * weight).ravel(), minlength=len(bins))
    cells = bins.reshape(CELLS, CELLS, ORIENTATIONS)
    blocks = np.concatenate([cells[:-1, :-1], cells[1:, :-1], cells[:-1, 1:], cells[1:, 1:]], axis=-1)
    for _ in range(2):
        blocks = blocks / np.sqrt((blocks**2).sum(-1, keepdims=True) + 1e-4)
        blocks = np.minimum(blocks, 0.2)
    return blocks.ravel().astype(np.float32)
