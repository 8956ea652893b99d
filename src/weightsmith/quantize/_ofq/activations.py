r"""Fake-quantized activations: LSQ between two learned shifts, and the layers that have it.

.. math:: \hat x = \operatorname{LSQ}(x + b_1) + b_2

Legend: ``C`` features, ``S`` sequences, ``N`` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import CalibrationError, NonFiniteError, ShapeError
from weightsmith.core.levels import check_bits
from weightsmith.core.linalg import upcast
from weightsmith.core.processes import gather_objects, process_count
from weightsmith.quantize._ofq.weights import SMALLEST_STEP, lsq

__all__ = ["QUANTIZED", "ActivationQuantizer", "Granularity", "quantizers"]

Granularity: TypeAlias = Literal["tensor", "token"]

MaskOf: TypeAlias = Callable[[Tensor], Tensor | None]


class ActivationQuantizer(nn.Module):
    """Rounds activations to whole multiples of a learned step, between two learned shifts.

    The step, and whether codes are signed, follow from the first data, see :func:`initialize_activations`.

    Parameters
    ----------
    bits : int
        Of each activation, 2 to 8.
    features : sequence of int
        Shape of the shifts, which broadcasts to that of the activations; empty for none.
    granularity : {"tensor", "token"}, default: "tensor"
        One step, or one per position (the dimension before the last).

    Raises
    ------
    HyperparameterError
        If ``bits`` is out of range.

    References
    ----------
    Esser et al. 2020, arXiv 1902.08153; Bhalgat et al. 2020, "LSQ+", arXiv 2004.09576.

    Examples
    --------
    >>> quantizer = ActivationQuantizer(2, (4,))
    >>> with quantizer.observing(lambda x: None):
    ...     _ = quantizer(torch.tensor([[0.5, -1.0, 1.5, -2.0]]))
    >>> quantizer.step.item(), quantizer(torch.tensor([[0.5, -1.0, 4.0, -4.0]])).tolist()
    (2.5, [[0.0, 0.0, 2.5, -5.0]])
    """

    is_signed: Tensor
    step: Tensor
    before: Tensor
    after: Tensor

    def __init__(self, bits: int, features: Sequence[int], granularity: Granularity = "tensor") -> None:
        super().__init__()
        check_choice("granularity", granularity, Granularity)
        self.bits, self.granularity = check_bits("bits", bits), granularity
        self.register_buffer("is_signed", torch.tensor(True))
        self.step = nn.Parameter(torch.zeros(()))  # zero: not initialized
        self.shifted = bool(features)
        if features:
            self.before, self.after = (nn.Parameter(torch.zeros(tuple(features))) for _ in range(2))
        self._seen: _Magnitudes | None = None

    @property
    def signed(self) -> bool:
        """Whether there are levels below zero."""
        return bool(self.is_signed)

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        n = 2 ** (self.bits - 1)
        return (-n, n - 1) if self.signed else (0, 2 * n - 1)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the activations on their levels.

        Raises
        ------
        CalibrationError
            If the step was not initialized.
        ShapeError
            If there is a step per position and the sequence is of another length.
        """
        if self._seen is not None:
            self._seen.update(x)
            return x
        if self.step.ndim == 2 and self.step.shape[0] != x.shape[-2]:
            raise ShapeError(
                "positions of the activations",
                found=x.shape[-2],
                expected=self.step.shape[0],
                do="There is a step per position: use this length, or granularity='tensor'.",
            )
        if self.step.ndim == 0:
            raise CalibrationError("the step of an activation quantizer is not initialized", do="Run data first.")
        shifted = x + self.before.to(x.dtype) if self.shifted else x
        rounded = lsq(shifted, self.step, *self.limits, processes=process_count())
        return rounded + self.after.to(x.dtype) if self.shifted else rounded

    def observing(self, mask_of: MaskOf) -> _Observing:
        """Let activations pass in a block, and initialize the step from them at its end."""
        return _Observing(self, mask_of)

    @torch.no_grad()
    def initialize(self, mean: Tensor, least: float, largest: float) -> None:
        """Set the step from the mean magnitude of the activations, and whether codes are signed from their range."""
        highest = 2**self.bits - 1
        # the reference names the layers without negative inputs by hand; here a negative tail of less than one step,
        # as GELU's at few bits, counts as none: the first shift can take it up
        self.is_signed.fill_(-least >= largest / highest)
        factor = 2 / (2 ** (self.bits - 1) - 1) ** 0.5 if self.signed else 4 / highest**0.5
        self.step.data = (factor * mean).clamp_min(SMALLEST_STEP)  # the same parameter: an optimizer may hold it

    def freeze(self) -> None:
        """Make the parameters buffers that are not part of the model's state."""
        for name in ("is_signed", "step", "before", "after") if self.shifted else ("is_signed", "step"):
            value = getattr(self, name).detach()
            delattr(self, name)
            self.register_buffer(name, value, persistent=False)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        if (step := state.get(f"{prefix}step")) is not None:  # its shape says that it is initialized
            if step.shape != self.step.shape:
                self.step.grad = None
            self.step.data = torch.empty_like(step, device=self.step.device)
        super()._load_from_state_dict(state, prefix, *others)

    def extra_repr(self) -> str:
        """Show the levels."""
        return f"bits={self.bits}, {'signed' if self.signed else 'unsigned'}, granularity={self.granularity!r}"


class _Observing:
    def __init__(self, quantizer: ActivationQuantizer, mask_of: MaskOf) -> None:
        self.quantizer, self.seen = quantizer, _Magnitudes(quantizer.granularity, mask_of)

    def __enter__(self) -> None:
        self.quantizer._seen = self.seen

    def __exit__(self, kind: object, *_: object) -> None:
        self.quantizer._seen = None
        if kind is None:
            self.seen.add_processes()
        if kind is None and self.seen.count is not None:
            mean = (self.seen.total / self.seen.count.clamp_min(1)).float().to(self.quantizer.step.device)
            self.quantizer.initialize(mean, self.seen.least, self.seen.largest)


class _Magnitudes:
    """The mean magnitude of real activations, the least and the largest."""

    def __init__(self, granularity: Granularity, mask_of: MaskOf) -> None:
        self.granularity, self.mask_of = granularity, mask_of
        self.least = self.largest = 0.0
        self.total: Tensor = torch.zeros(())
        self.count: Tensor | None = None

    def update(self, x: Tensor) -> None:
        mask = self.mask_of(x)  # [S, N]
        x = upcast(x.detach())
        real = torch.ones_like(x, dtype=torch.bool)
        if mask is not None and x.ndim > 1:
            if x.ndim == 2 and len(x) == mask.numel():
                real &= mask.view(-1, 1)
            elif x.ndim > 2 and x.shape[0] == mask.shape[0] and x.shape[-2] == mask.shape[1]:
                real &= mask.view(len(mask), *[1] * (x.ndim - 3), -1, 1)
                if x.ndim == 4 and x.shape[-1] == mask.shape[1]:
                    real &= mask[:, None, None]
        if not bool(x[real].isfinite().all()):
            raise NonFiniteError("activations hold NaN or infinity", do="Check the first training samples.")
        x = x.masked_fill(~real, 0)
        dims = [d for d in range(x.ndim) if d != x.ndim - 2] if self.granularity == "token" and x.ndim > 2 else []
        total, count = (
            t.sum(dims, keepdim=True).view(-1, 1) if dims else t.sum().view(1) for t in (x.abs(), real.to(x.dtype))
        )
        self.least, self.largest = min(self.least, float(x.min())), max(self.largest, float(x.max()))
        self.total = total if self.count is None else self.total + total
        self.count = count if self.count is None else self.count + count

    def add_processes(self) -> None:
        """Take in what other processes have seen; one may have seen nothing."""
        own = None if self.count is None else (self.total.cpu(), self.count.cpu(), self.least, self.largest)
        seen = [part for part in gather_objects(own) if part is not None]
        if len(seen) > 1 or (seen and own is None):
            self.total = torch.stack([part[0] for part in seen]).sum(0)
            self.count = torch.stack([part[1] for part in seen]).sum(0)
            self.least, self.largest = min(part[2] for part in seen), max(part[3] for part in seen)


class _Quantized:
    """A layer whose input is fake-quantized."""

    input_quantizer: nn.Module

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Quantize the input and compute the layer."""
        return super().forward(self.input_quantizer(x), *args, **kwargs)  # type: ignore[misc]


class QuantizedLinear(_Quantized, nn.Linear):  # type: ignore[misc]
    """A linear layer on fake-quantized inputs."""


class QuantizedConv1D(_Quantized, Conv1D):
    """Hugging Face's transposed linear layer on fake-quantized inputs."""


class QuantizedConv1d(_Quantized, nn.Conv1d):  # type: ignore[misc]
    """A convolution on fake-quantized inputs."""


class QuantizedConv2d(_Quantized, nn.Conv2d):  # type: ignore[misc]
    """A convolution on fake-quantized inputs."""


class QuantizedConv3d(_Quantized, nn.Conv3d):  # type: ignore[misc]
    """A convolution on fake-quantized inputs."""


QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: QuantizedLinear,
    Conv1D: QuantizedConv1D,
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
}
"""From the class of a layer to that of the same layer on fake-quantized inputs."""


def quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """Return the activation quantizers of a model by their paths."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ActivationQuantizer)}
