r"""The supervised dictionary, one vector per value of each attribute: the ceiling for dictionaries without labels.

.. math:: \hat a(p) = b + \sum_f c_f[v_f(p)]

with the mean activation b. :func:`mean_codes` takes :math:`c_f[v] = \mathbb E[a - b \mid v_f = v]`; :func:`mse_codes`
solves for all codes at once, which stays unbiased where the attributes are confounded.

Legend: ``P`` prompts, ``D`` features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from weightsmith.core.errors import CalibrationError, ShapeError
from weightsmith.core.io import CheckpointReader, load_tagged, save_tagged

__all__ = ["AttributeCodes", "mean_codes", "mse_codes"]

KIND = "codes of attributes"
Attributes = Mapping[str, Int[Tensor, " P"]]


@dataclass(frozen=True)
class AttributeCodes:
    """A vector per value of each attribute.

    Attributes
    ----------
    bias_D : Tensor of shape (features,)
        The mean activation.
    codes : mapping of str to Tensor of shape (values, features)
        By attribute; zero for a value that was not seen.
    seen : mapping of str to Tensor of shape (values,)
        Which values were.
    values : mapping of str to sequence of str
        Their names.
    """

    bias_D: Float[Tensor, " D"]
    codes: Mapping[str, Float[Tensor, "_ D"]]
    seen: Mapping[str, Bool[Tensor, " _"]]
    values: Mapping[str, Sequence[str]]

    def reconstruct(self, attributes: Attributes) -> Float[Tensor, "P D"]:
        """Return the reconstruction of prompts with these attributes."""
        return self.bias_D + sum((self.of(name, attributes[name]) for name in self.codes), torch.zeros(()))

    def of(self, name: str, values: Int[Tensor, " P"]) -> Float[Tensor, "P D"]:
        """Return the codes of some values of an attribute.

        Raises
        ------
        CalibrationError
            If no example had such a value.
        """
        unseen = values[~self.seen[name][values]]
        if len(unseen):
            value = self.values[name][int(unseen[0])]
            raise CalibrationError(f"the fit saw no example of {name}={value!r}", do="Train on more prompts.")
        return self.codes[name][values]

    def edit(self, a_PD: Tensor, name: str, old: Int[Tensor, " P"], new: Int[Tensor, " P"]) -> Float[Tensor, "P D"]:
        """Return activations with the code of one value replaced by that of another."""
        same = (old == new)[:, None]
        return torch.where(same, a_PD, a_PD - self.of(name, old) + self.of(name, new))

    def weights(self, name: str, attributes: Attributes) -> Float[Tensor, " P"]:
        """Return which share of each reconstruction is the code of one attribute; NaN where there is none."""
        rest_PD = self.reconstruct(attributes) - self.bias_D
        return (self.of(name, attributes[name]) * rest_PD).sum(1) / rest_PD.square().sum(1)

    def save(self, path: str | Path) -> None:
        """Write the codes to a ``.safetensors`` file."""
        tensors = {"bias": self.bias_D}
        for name in self.codes:
            tensors |= {f"codes.{name}": self.codes[name], f"seen.{name}": self.seen[name]}
        values = {name: list(values) for name, values in self.values.items()}
        save_tagged(tensors, path, kind=KIND, about={"values": values})

    @classmethod
    def load(cls, path: str | Path) -> AttributeCodes:
        """Read what :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            If the file holds something else.
        """

        def build(file: CheckpointReader, about: Any) -> AttributeCodes:
            codes, seen = (
                {name: file.tensor(f"{part}.{name}") for name in about["values"]} for part in ("codes", "seen")
            )
            return cls(file.tensor("bias"), codes, seen, about["values"])

        return load_tagged(path, KIND, build)


def mean_codes(
    a_PD: Float[Tensor, "P D"], attributes: Attributes, values: Mapping[str, Sequence[str]]
) -> AttributeCodes:
    """Fit a code per attribute value as the mean of its activations.

    Parameters
    ----------
    a_PD : Tensor of shape (prompts, features)
        Activations.
    attributes : mapping of str to Tensor of shape (prompts,)
        The number of each attribute's value.
    values : mapping of str to sequence of str
        The names of the values.

    Returns
    -------
    AttributeCodes
        Unbiased if the attributes are independent.

    Raises
    ------
    ShapeError
        If prompts are missing, or a value has no name.

    Examples
    --------
    >>> a = torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 1.0], [1.0, 3.0]])
    >>> codes = mean_codes(a, {"x": torch.tensor([0, 1, 0, 1])}, {"x": ("low", "high")})
    >>> codes.bias_D.tolist(), codes.codes["x"].tolist()
    ([1.5, 1.5], [[1.0, -1.0], [-1.0, 1.0]])
    """
    counts, sums = _sums(a_PD, attributes, values)
    codes = {name: sums[name] / counts[name].clamp(min=1)[:, None] for name in sums}
    return AttributeCodes(a_PD.mean(0), codes, {name: count > 0 for name, count in counts.items()}, values)


def mse_codes(
    a_PD: Float[Tensor, "P D"], attributes: Attributes, values: Mapping[str, Sequence[str]]
) -> AttributeCodes:
    """Fit all codes at once by least squares, of minimum norm.

    Parameters, errors and what is returned are those of :func:`mean_codes`; the two are equal if attributes are
    independent and their values equally frequent.

    Examples
    --------
    >>> a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> attributes = {"x": torch.tensor([0, 0, 0, 1]), "y": torch.tensor([0, 0, 1, 1])}
    >>> codes = mse_codes(a, attributes, dict.fromkeys("xy", ("low", "high")))
    >>> torch.allclose(codes.reconstruct(attributes), a, atol=1e-6)
    True
    """
    counts, sums = _sums(a_PD, attributes, values)
    sizes = [len(values[name]) for name in sums]
    offsets = torch.tensor([0, *sizes]).cumsum(0)[:-1].tolist()
    places = torch.stack([attributes[name] + start for name, start in zip(sums, offsets, strict=True)], dim=1)
    pairs = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    for first in places.T:
        for second in places.T:
            pairs.index_put_((first, second), torch.ones((), dtype=torch.float64), accumulate=True)
    shares = torch.cat([counts[name] for name in sums]).double()
    gram = pairs - shares[:, None] * shares / len(a_PD)  # of the centered one-hot design, which is rank-deficient
    right = torch.cat([sums[name] for name in sums]).double()
    solved = (torch.linalg.pinv(gram, hermitian=True, rtol=1e-10) @ right).to(a_PD.dtype)
    codes = {}
    for name, code in zip(sums, solved.split(sizes), strict=True):
        share = counts[name] / len(a_PD)
        codes[name] = torch.where(counts[name][:, None] > 0, code - share @ code, 0)  # the bias stays the mean
    return AttributeCodes(a_PD.mean(0), codes, {name: count > 0 for name, count in counts.items()}, values)


def _sums(
    a_PD: Tensor, attributes: Attributes, values: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Per attribute how often each value occurs, and the sum of its centered activations."""
    centered_PD = a_PD - a_PD.mean(0)
    counts, sums = {}, {}
    for name, numbers in attributes.items():
        size = len(values[name])
        if len(numbers) != len(a_PD) or int(numbers.max()) >= size or int(numbers.min()) < 0:
            raise ShapeError(
                f"attribute {name!r}",
                found=f"{len(numbers)} prompts, values from {int(numbers.min())} to {int(numbers.max())}",
                expected=f"{len(a_PD)} prompts, values from 0 to {size - 1}",
            )
        counts[name] = torch.bincount(numbers, minlength=size).to(a_PD.dtype)
        sums[name] = a_PD.new_zeros(size, a_PD.shape[1]).index_add_(0, numbers, centered_PD)
    return counts, sums
