"""Digests of samples, to tell whether two are the same."""

from __future__ import annotations

import hashlib
import numbers
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightsmith.core.caller import random_state_kept
from weightsmith.core.data._batches import Samples

__all__ = ["sample_digest", "samples_digest"]


def samples_digest(samples: Samples) -> str:
    """Return a digest of a data set; what its samples draw from the global generators is drawn from seed 0.

    Examples
    --------
    >>> samples_digest([(1.0, 0)]) == samples_digest([(1.0, 1)])
    False
    """
    total = hashlib.blake2b(digest_size=16)
    with random_state_kept():
        torch.default_generator.manual_seed(0)  # samples are on the CPU
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        for index in range(len(samples)):
            total.update(sample_digest(samples[index]))
    return total.hexdigest()


def sample_digest(sample: Any) -> bytes:
    """Return a digest of a sample's values, whatever container and precision they are in.

    Examples
    --------
    >>> sample_digest((torch.ones(2), 0)) == sample_digest(([1.0, 1.0], torch.tensor(0)))
    True
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, sample)
    return digest.digest()


def _feed(digest: Any, part: Any) -> None:
    values = _numbers(part)
    if values is not None:  # of any type and container: a copy in another one is the same sample
        digest.update(str(values.shape).encode())
        digest.update(values.tobytes())
    elif isinstance(part, Mapping):
        mask = part.get("attention_mask")
        for name in sorted(part):
            value = part[name]
            if isinstance(mask, Tensor) and isinstance(value, Tensor) and mask.ndim == 1 and value.shape == mask.shape:
                value = value[mask.bool()]  # each set is padded to its own longest sample
            digest.update(name.encode())
            _feed(digest, value)
    elif isinstance(part, (tuple, list)):
        for each in part:
            _feed(digest, each)
    else:
        digest.update(repr(part.tolist() if isinstance(part, np.ndarray) else part).encode())


def _numbers(part: Any) -> np.ndarray | None:
    """A tensor, array, number or nested sequence of numbers in float64, where it holds them; None for anything else."""
    if isinstance(part, Tensor):
        part = part.detach().cpu().to_dense() if part.layout != torch.strided else part.detach().cpu()
        part = torch.view_as_real(part.resolve_conj()) if part.is_complex() else part
        part = (part.double() if part.is_floating_point() else part).numpy()
    if isinstance(part, (tuple, list)) and {type(each) for each in part} in ({int}, {float}):
        part = np.asarray(part)
    if isinstance(part, (tuple, list)):
        values = [each for each in map(_numbers, part) if each is not None]
        alike = len(values) == len(part) and len({each.shape for each in values}) == 1
        return np.stack(values) if alike else None
    if not isinstance(part, (numbers.Real, np.ndarray)) or np.asarray(part).dtype.kind not in "biuf":
        return None
    exact = np.asarray(part)
    return exact if exact.dtype.kind in "iu" and np.any(np.abs(exact) > 2**53) else exact.astype(np.float64)
