r"""Linear layers that hold two or four bits per weight and compute single tokens from them.

With unsigned codes :math:`u` a weight is :math:`(a u - c)\,t` for the unit :math:`t` of its row, so

.. math:: y_o = t_o \Big( a \sum_i u_{oi} x_i - c \sum_i x_i \Big) + b_o .

One token reads an eighth or a sixteenth of the bytes of float32. More tokens at once are computed with the weight,
made for the call.

Legend: ``O`` outputs, ``I`` inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.errors import HyperparameterError, MissingDependencyError, UnsupportedModelError
from weightsmith.core.levels import Quantization, WeightLevels
from weightsmith.core.models import get_module, swap_module, without_fast_path
from weightsmith.core.threads import lock
from weightsmith.core.training import restored_on_error

__all__ = ["PackedLinear", "pack_linear"]

LANES = 16


class PackedLinear(nn.Module):
    """A linear layer with weights on levels, packed for the CPU.

    Parameters
    ----------
    layer : nn.Linear
        With its weight on its levels. A quantizer of its inputs is taken over.
    levels : WeightLevels
        Of at most four bits.

    Raises
    ------
    CheckpointError
        If the weight is off its levels.
    HyperparameterError
        If it has more than four bits.
    UnsupportedModelError
        If the layer is not on the CPU.

    Examples
    --------
    >>> layer = nn.Linear(3, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.5, -1.5, 0.5], [1.0, 1.0, -3.0]]))
    >>> packed = PackedLinear(layer, WeightLevels(2, True, [0.5, 1.0]))
    >>> with torch.no_grad():
    ...     packed(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[-1., -6.]])
    """

    words: Tensor
    unit: Tensor

    def __init__(self, layer: nn.Linear, levels: WeightLevels) -> None:
        super().__init__()
        if levels.bits > 4:
            raise HyperparameterError("bits of a packed layer", found=levels.bits, expected="at most 4")
        if layer.weight.device.type != "cpu":
            raise UnsupportedModelError("a packed layer", found=str(layer.weight.device), expected="the CPU")
        self.out_features, self.in_features = layer.weight.shape
        self.width = 2 if levels.bits == 2 else 4
        codes, self.factor, self.offset = levels.codes(layer.weight.detach())
        self.register_buffer("words", self._packed(codes))
        self.register_buffer("unit", torch.tensor(levels.unit, dtype=layer.weight.dtype))
        self._input = np.zeros(self.words.shape[1] * LANES * self._groups, np.float32)
        self.bias = layer.bias
        self.input_quantizer = getattr(layer, "input_quantizer", nn.Identity())
        self.train(layer.training)

    @property
    def _groups(self) -> int:
        """Codes of a word."""
        return 32 // self.width

    def _packed(self, codes_OI: Tensor) -> Tensor:
        """Words ``[out, blocks, 16]``; an odd number of rows gets one more of zeros."""
        rows, columns = codes_OI.shape
        block = LANES * self._groups
        codes = functional.pad(codes_OI, (0, -columns % block, 0, rows % 2))
        fields = codes.view(rows + rows % 2, -1, self._groups, LANES).numpy().astype(np.uint32)
        shifts = np.arange(0, 32, self.width, dtype=np.uint32)[:, None]
        return torch.from_numpy(np.bitwise_or.reduce(fields << shifts, axis=2).view(np.int32))

    def weight(self) -> Float[Tensor, "out in"]:
        """Return the weight that the codes stand for."""
        shifts = torch.arange(0, 32, self.width, dtype=torch.int32)[:, None]
        fields = (self.words[:, :, None] >> shifts) & (2**self.width - 1)
        codes = fields.flatten(1)[: self.out_features, : self.in_features]
        return (codes * self.factor - self.offset).to(self.unit.dtype) * self.unit[:, None]

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Return the layer's output."""
        x = self.input_quantizer(x)
        exact = x.dtype == torch.float64  # the kernel adds in float32
        if x.numel() != self.in_features or exact or (torch.is_grad_enabled() and x.requires_grad):
            return functional.linear(x, self.weight(), self.bias)
        try:
            from weightsmith.quantize._shared.kernels.cpu import products
        except ImportError as error:
            raise MissingDependencyError(
                f"a packed layer needs package {error.name!r}", do="pip install 'weightsmith[kernels]'."
            ) from error
        row, sums = self._input, np.empty(len(self.words), np.float32)
        with lock:
            row[: self.in_features] = x.detach().float().flatten().numpy()
            products(row.reshape(-1, self._groups, LANES), self.words.numpy(), sums, torch.get_num_threads())
            sums *= self.factor
            sums -= self.offset * row.sum()
        y = (torch.from_numpy(sums)[: self.out_features] * self.unit).to(x.dtype)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)

    def _save_to_state_dict(self, *_: Any) -> None:
        raise UnsupportedModelError("a packed layer cannot be saved", do="Save the model first, with save_packed.")

    def extra_repr(self) -> str:
        """Show the shape and the bits."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.width}"


def pack_linear(model: nn.Module, plan: Quantization) -> list[str]:
    """Replace the linear layers of at most four bits by packed ones, to write text on the CPU faster.

    Parameters
    ----------
    model : nn.Module
        On the CPU, with weights on their levels. Changed in place; afterwards it cannot be trained or saved.
    plan : Quantization
        ``Quantization.load(folder)``, or from :func:`finish_qat`.

    Returns
    -------
    list of str
        The layers.

    Raises
    ------
    CheckpointError
        If a weight is off its levels.
    UnsupportedModelError
        If no layer can be packed, or one is not on the CPU.

    Examples
    --------
    >>> from weightsmith.quantize import round_to_nearest
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
    >>> pack_linear(model, Quantization.from_json(round_to_nearest(model).files["quantization.json"]))
    ['0', '2']
    """
    chosen = [
        name
        for name, levels in plan.weights.items()
        if levels.bits <= 4 and isinstance(get_module(model, name), nn.Linear)
    ]
    if not chosen:
        raise UnsupportedModelError("no layer to pack", expected="linear layers of at most four bits")
    with restored_on_error(model, values=False):
        without_fast_path(model)
        for name in chosen:
            layer = get_module(model, name)
            assert isinstance(layer, nn.Linear)
            swap_module(model, name, PackedLinear(layer, plan.weights[name]))
    return chosen
