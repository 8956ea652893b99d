"""Evaluate :class:`HistoryNet` on millions of weights at matrix-multiplication speed.

The straightforward forward pass writes ten intermediates of 64 numbers a weight to memory. Here the features are the
rows (``[features, weights]``), so that matrices that share an input are one product whose results are contiguous
slices. Biases are columns of their matrices, multiplied with a row of ones. Two products are folded into their
neighbours: the squeeze into the input, ``x (A0 A1)``, and the additive path past the gates into the output,
``z (A2 A5)``. A chunk of weights goes through all of it in buffers that stay in the processor's caches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat

import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.predict._know.network import OUT, SLOPE, SQUEEZE, STAGES, WIDTH, HistoryNet

__all__ = ["ElementwiseRule", "FusedHistoryNet"]

CPU_CHUNK = 4096  # x 280 floats = 4.6 MB of buffers; smaller chunks make threads wait for Python's lock
CUDA_CHUNK = 1 << 18
PARALLEL_CHUNKS = 4
"""Chunks that each thread must have for threads to pay."""


class FusedHistoryNet:
    """A frozen, fast copy of a :class:`HistoryNet`.

    Parameters
    ----------
    net : HistoryNet
        The network; later changes to it are not seen.
    device : torch.device, default: CPU
        Where histories live.
    chunk : int, optional
        Weights evaluated at a time; the default fits the processor's caches.

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
            inp, out, add = _augmented(stream.inp), _augmented(stream.out), _augmented(stream.add)
            squeeze = torch.zeros(SQUEEZE + 1, inp.shape[1], dtype=torch.float64)
            squeeze[:SQUEEZE] = stream.squeeze.weight.double() @ inp
            squeeze[:SQUEEZE, -1] += stream.squeeze.bias.double()
            squeeze[SQUEEZE, -1] = 1  # relu(1) is the row of ones that the biases are multiplied with
            gates = torch.cat([_augmented(stream.amp), _augmented(stream.exp) * math.log2(math.e)])
            past_gates = out[:, :-1] @ add
            past_gates[:, -1] += out[:, -1]
            matrices = (torch.cat([inp, squeeze]), gates, torch.cat([out[:, :-1], past_gates], dim=1))
            self._streams.append([m.detach().float().to(self.device).contiguous() for m in matrices])
        self._head = _augmented(net.head).detach().float().to(self.device)
        self._buffers = [_Buffers(self.chunk, self.device)]

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
        for history, change in zip(h_SN.split(self.chunk, dim=1), out.split(self.chunk), strict=True):
            views = self._buffers[0].views(len(change))
            views.history.copy_(history)
            change.copy_(self._changes(views))
        return out

    def advance_(self, history: Sequence[Float[Tensor, " weights"]], steps: int) -> None:
        """Overwrite the first of five stages with the prediction after ``steps`` steps of the recursion.

        Parameters
        ----------
        history : five Tensors of shape (weights,)
            Smallest training set first, in any floating type; computed in float32 and rounded once.
        steps : int >= 1
            Each step predicts from the history shifted by the last prediction.
        """
        workers = torch.get_num_threads() if self.device.type == "cpu" else 1
        if len(history[0]) < workers * PARALLEL_CHUNKS * self.chunk:
            workers = 1
        while len(self._buffers) < workers:
            self._buffers.append(_Buffers(self.chunk, self.device))
        if workers == 1:
            self._advance(history, steps, self._buffers[0])
            return
        shares = zip(*(row.chunk(workers) for row in history), strict=True)
        # One chunk is too little work to be shared between threads, so each thread has chunks of its own.
        with _one_thread_each(), ThreadPoolExecutor(workers) as pool:
            list(pool.map(self._advance, shares, repeat(steps), self._buffers))

    def _advance(self, history: Sequence[Tensor], steps: int, buffers: _Buffers) -> None:
        # Not Tensor.split: a hundred thousand views of a large tensor would take more memory than the tensor.
        for start in range(0, len(history[0]), self.chunk):
            rows = [row[start : start + self.chunk] for row in history]
            views = buffers.views(len(rows[0]))
            window = views.history
            for stage, row in zip(window, rows, strict=True):
                stage.copy_(row)
            for step in range(steps):
                latest = window[-1] + self._changes(views)
                if step < steps - 1:
                    window[:-1] = window[1:].clone()
                    window[-1] = latest
            rows[0].copy_(latest)

    @torch.no_grad()
    def _changes(self, v: _Views) -> Float[Tensor, " weights"]:
        """The predicted changes for the histories in the buffers; the next call overwrites them."""
        torch.sub(v.later, v.earlier, out=v.differences)
        for rows, half, (inp, gate, last) in zip(v.inputs, v.halves, self._streams, strict=True):
            torch.mm(inp, rows, out=v.y)
            v.z.relu_()
            torch.mm(gate, v.z, out=v.gates)
            # exp(x) as 2 ** (x log2 e): torch's exp2 takes half the time of its exp.
            torch.mul(v.amp, v.exponent.mul_(v.f).exp2_(), out=v.f)
            torch.mm(last, v.y, out=half)
            torch.nn.functional.leaky_relu_(half, SLOPE)
        return torch.mm(self._head, v.o, out=v.out).tanh_().squeeze(0)


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

    def __call__(self, history: Sequence[Float[Tensor, "*shape"]], steps: int) -> Tensor:
        """Write the prediction over the first of five snapshots and return it."""
        device = history[0].device
        if device not in self._fused:
            self._fused[device] = FusedHistoryNet(self.net, device, self.chunk)
        self._fused[device].advance_([snapshot.view(-1) for snapshot in history], steps)
        return history[0]


class _Buffers:
    """One thread's intermediates, kept from chunk to chunk."""

    def __init__(self, chunk: int, device: torch.device) -> None:
        self._chunk, self._device = chunk, device
        self._whole: _Views | None = None

    def views(self, n: int) -> _Views:
        """Buffers for ``n`` weights: those of a whole chunk are made once, those of a last, smaller one each time."""
        if n != self._chunk:
            return _Views(n, self._device)
        if self._whole is None:
            self._whole = _Views(n, self._device)
        return self._whole


class _Views:
    """Buffers for ``n`` weights and their parts, by name.

    The last row of ``x``, ``dx`` and ``o`` is the row of ones for the biases. ``y`` holds ``f``, later the gated
    features, and then ``z``.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        def rows(count: int) -> Tensor:
            return torch.ones(count, n, device=device)

        x, dx = self.inputs = rows(STAGES + 1), rows(STAGES)
        self.history, self.earlier, self.later = x[:STAGES], x[: STAGES - 1], x[1:STAGES]
        self.differences = dx[: STAGES - 1]
        self.y, self.gates, self.out = rows(WIDTH + SQUEEZE + 1), rows(2 * WIDTH), rows(1)
        self.f, self.z = self.y[:WIDTH], self.y[WIDTH:]
        self.amp, self.exponent = self.gates.split(WIDTH)
        self.o = rows(2 * OUT + 1)
        self.halves = self.o[:OUT], self.o[OUT : 2 * OUT]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let new threads run their operations alone; torch's setting is global, so it is put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _augmented(layer: torch.nn.Linear) -> Float[Tensor, "out in_and_bias"]:
    """Weight and bias as one matrix, in float64 so that the folded product rounds once."""
    return torch.cat([layer.weight, layer.bias.unsqueeze(1)], dim=1).double()
