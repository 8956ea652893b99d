"""The signal-to-noise ratio of singular values."""

from __future__ import annotations

import math

import pytest
import torch

from weightsmith.analyze import signal_to_noise, singular_values


def test_ratio_by_hand():
    s = torch.tensor([[20.0, 4.0, 3.0, 2.0, 1.0]])  # quartiles 2 and 4
    assert 2 / 1.349 * 2 < 3
    assert signal_to_noise(s, 5, 5).item() == pytest.approx(27 / 3)
    assert 2 / 1.349 * (1 + 1 / math.sqrt(5)) > 2
    assert signal_to_noise(s, 5, 25).item() == pytest.approx(27 / 3)
    assert signal_to_noise(torch.tensor([[5.0, 5.0, 5.0]]), 3, 3).item() == math.inf


def test_ratio_knows_no_scale_and_no_orientation():
    w = torch.randn(1, 24, 40, generator=torch.Generator().manual_seed(0))
    expected = signal_to_noise(singular_values(w), 24, 40)
    torch.testing.assert_close(signal_to_noise(singular_values(7 * w), 24, 40), expected)
    torch.testing.assert_close(signal_to_noise(singular_values(w.mT), 40, 24), expected)


def test_signal_raises_the_ratio():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 64, 64, generator=generator)
    signal = torch.randn(64, 2, generator=generator) @ torch.randn(2, 64, generator=generator)
    ratios = [signal_to_noise(singular_values(noise + size * signal), 64, 64).item() for size in (0.0, 1.0, 4.0)]
    assert ratios == sorted(ratios)
    assert ratios[2] > 1.5 * ratios[0]
