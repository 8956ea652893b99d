"""Small random data for the tests of the dictionaries."""

from __future__ import annotations

import numpy as np


def bars(seed=0, points=500, *, signed=False, maximum=False, values=(0.0, 1.0), p=(0.8, 0.2), sigma=2.0):
    """Points that are sums, or maxima, of horizontal and vertical bars; the bars, and which are in which point."""
    generator = np.random.default_rng(seed)
    images = np.zeros((10, 5, 5))
    for line in range(5):
        images[line, line], images[5 + line, :, line] = 10, 10
    atoms = images.reshape(10, 25) * (generator.choice([-1, 1], (10, 1)) if signed else 1)
    codes = generator.choice(values, (points, 10), p=p)
    clean = codes @ atoms
    if maximum:
        parts = codes[:, :, None] * atoms
        clean = np.take_along_axis(parts, np.abs(parts).argmax(1, keepdims=True), 1)[:, 0]
    return clean + generator.normal(0, sigma, clean.shape), atoms, codes


def drawn(n=60, p=10, classes=2, seed=0):
    """Uniform features, and classes that are quantiles of a noisy linear function of them."""
    draw = np.random.RandomState(seed)
    x = draw.rand(n, p)
    y = np.argsort(np.argsort(x @ draw.randn(p) + 0.1 * draw.randn(n))) * classes // n
    return x, y


def problem(n=10, theta=0.3, samples=4000, seed=0):
    """Rows that are sparse in an orthonormal basis, and the basis, atoms as columns."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0]
    codes = rng.standard_normal((samples, n)) * (rng.random((samples, n)) < theta)
    return codes @ basis.T, basis
