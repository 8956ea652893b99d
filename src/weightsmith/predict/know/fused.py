"""Evaluate :class:`HistoryNet` on millions of weights at matrix-multiplication speed.

The straightforward forward pass writes ten intermediates of 64 numbers a weight to memory. Here the features are the
rows (``[features, weights]``), so that the three products that share ``z`` are one matrix multiplication whose
results are contiguous slices; every bias is a column of its matrix, multiplied with a row of ones; the squeeze
``f A1`` is folded into the input (``x (A0 A1)``); and a chunk of weights goes through all of it in buffers that stay
in the processor's second-level cache.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.predict.know.network import OUT, SLOPE, SQUEEZE, STAGES, WIDTH, HistoryNet

__all__ = ["ElementwiseRule", "FusedHistoryNet"]

CPU_CHUNK = 1024  # 1024 weights x ~420 floats = 1.7 MB of buffers
CUDA_CHUNK = 1 << 18


class FusedHistoryNet:
    """A frozen, fast copy of a :class:`HistoryNet`.

    Parameters
    ----------
    net : HistoryNet
        The network; later changes to it are not seen.
    device : torch.device, default: CPU
        Where histories live.
    chunk : int, optional
        Weights evaluated at a time; the default fits the second-level cache.

    Examples
    --------
    >>> net = HistoryNet(torch.Generator().manual_seed(0))
    >>> h = torch.randn(100, 5, generator=torch.Generator().manual_seed(0)) / 10
    >>> bool((FusedHistoryNet(net)(h.T) - net(h)).abs().max() < 1e-6)
    True
    """

    def __init__(self, net: HistoryNet, device: torch.device | str = "cpu", chunk: int | None = None) -> None:
        self.device = torch.device(device)
        self.chunk = chunk or (CUDA_CHUNK if self.device.type == "cuda" else CPU_CHUNK)
        self._streams = []
        for stream in (net.value, net.delta):
            f = _augmented(stream.inp)
            squeeze = torch.zeros(SQUEEZE + 1, f.shape[1], dtype=torch.float64)
            squeeze[:SQUEEZE] = stream.squeeze.weight.double() @ f
            squeeze[:SQUEEZE, -1] += stream.squeeze.bias.double()
            squeeze[SQUEEZE, -1] = 1  # relu(1) is the row of ones that z's own biases are multiplied with
            gates = torch.cat([_augmented(layer) for layer in (stream.amp, stream.exp, stream.add)])
            matrices = (f, squeeze, gates, _augmented(stream.out))
            self._streams.append([m.detach().float().to(self.device).contiguous() for m in matrices])
        self._head = _augmented(net.head).detach().float().to(self.device)
        self._buffers = _Buffers(self.chunk, self.device)

    def __call__(self, h_SN: Float[Tensor, "5 weights"]) -> Float[Tensor, " weights"]:
        """Return the predicted change of each weight, in (-1, 1).

        Parameters
        ----------
        h_SN : Tensor of shape (5, weights)
            Histories, one **row** a stage, smallest training set first.

        Returns
        -------
        Tensor of shape (weights,)
        """
        out = torch.empty(h_SN.shape[1], dtype=torch.float32, device=self.device)
        for start in range(0, len(out), self.chunk):
            columns = slice(start, start + self.chunk)
            self._load(h_SN[:, columns])
            out[columns] = self._changes(len(out[columns]))
        return out

    def advance_(self, h_SN: Float[Tensor, "5 weights"], steps: int) -> None:
        """Overwrite the first row with the prediction after ``steps`` steps, each from the shifted history.

        Parameters
        ----------
        h_SN : Tensor of shape (5, weights)
            Histories in any floating type; computed in float32 and rounded once.
        steps : int >= 1
            Steps of the recursion.
        """
        for start in range(0, h_SN.shape[1], self.chunk):
            columns = h_SN[:, start : start + self.chunk]
            self._load(columns)
            window = self._buffers.x[:STAGES, : columns.shape[1]]
            for step in range(steps):
                latest = window[-1] + self._changes(columns.shape[1])
                if step < steps - 1:
                    window[:-1] = window[1:].clone()
                    window[-1] = latest
            columns[0] = latest

    def _load(self, h_SN: Tensor) -> None:
        self._buffers.x[:STAGES, : h_SN.shape[1]] = h_SN

    @torch.no_grad()
    def _changes(self, n: int) -> Float[Tensor, " weights"]:
        """The predicted changes for the ``n`` loaded histories, in a buffer that the next call overwrites."""
        b = self._buffers
        x, dx, f, z, gates = b.x[:, :n], b.dx[:, :n], b.f[:, :n], b.z[:, :n], b.gates[:, :n]
        y, o, out = b.y[:, :n], b.o[:, :n], b.out[:, :n]
        amp, exponent, add = gates.split(WIDTH)
        torch.sub(x[1:STAGES], x[: STAGES - 1], out=dx[: STAGES - 1])
        for rows, (inp, squeeze, gate, last), half in zip((x, dx), self._streams, o[:-1].split(OUT), strict=True):
            torch.mm(inp, rows, out=f)
            torch.mm(squeeze, rows, out=z).relu_()
            torch.mm(gate, z, out=gates)
            exponent.mul_(f).exp_()
            torch.addcmul(add, amp, exponent, out=y[:WIDTH])
            torch.mm(last, y, out=half)
            torch.nn.functional.leaky_relu_(half, SLOPE)
        return torch.mm(self._head, o, out=out).tanh_().squeeze(0)


class ElementwiseRule:
    """The paper's rule: every weight on its own, ``h_4 + out(h)``.

    Parameters
    ----------
    net : HistoryNet
        The predictor of this kind of weight.
    chunk : int, optional
        Weights evaluated at a time; see :class:`FusedHistoryNet`.
    """

    bounded = True

    def __init__(self, net: HistoryNet, chunk: int | None = None) -> None:
        self.net = net
        self.chunk = chunk
        self._fused: dict[torch.device, FusedHistoryNet] = {}

    def __call__(self, history: Float[Tensor, "5 *shape"], steps: int) -> Tensor:
        """Write the prediction over the history's first row and return it."""
        if history.device not in self._fused:
            self._fused[history.device] = FusedHistoryNet(self.net, history.device, self.chunk)
        self._fused[history.device].advance_(history.view(STAGES, -1), steps)
        return history[0]


class _Buffers:
    """Intermediates of one chunk; the last row of ``x``, ``dx``, ``y`` and ``o`` is the row of ones for the biases."""

    def __init__(self, chunk: int, device: torch.device) -> None:
        def rows(count: int) -> Tensor:
            return torch.ones(count, chunk, device=device)

        self.x, self.dx = rows(STAGES + 1), rows(STAGES)
        self.f, self.z, self.gates = rows(WIDTH), rows(SQUEEZE + 1), rows(3 * WIDTH)
        self.y, self.o, self.out = rows(WIDTH + 1), rows(2 * OUT + 1), rows(1)


def _augmented(layer: torch.nn.Linear) -> Float[Tensor, "out in_and_bias"]:
    """Weight and bias as one matrix, in float64 so that the folded product rounds once."""
    return torch.cat([layer.weight, layer.bias.unsqueeze(1)], dim=1).double()
