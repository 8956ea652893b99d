"""The paper's rule, evaluated on millions of weights.

The plain forward pass of :class:`HistoryNet` writes ten intermediates of 64 numbers per weight. Here features are
rows (``[features, weights]``), and layers that share an input are one product. Biases are columns of their matrices,
multiplied by a row of ones. Two products are folded into their neighbors: the squeeze into the input,
``x (A0 A1)``, and the additive path into the output, ``z (A2 A5)``. The intermediates of a chunk stay in the caches.
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

from weightsmith.core.errors import HyperparameterError
from weightsmith.predict._know.network import SLOPE, SQUEEZE, WIDTH, HistoryNet

__all__ = ["ElementwiseRule"]

CPU_CHUNK, GPU_CHUNK = 2048, 1 << 18
PARALLEL_CHUNKS = 4
"""Chunks that each thread must have for threads to pay."""


class ElementwiseRule:
    """Predict every weight on its own: ``h_4 + out(h)``.

    Parameters
    ----------
    net : HistoryNet
        The predictor of this kind of weight; later changes to it are not seen.
    chunk : int, optional
        Weights evaluated at a time; the default fits the caches.

    Raises
    ------
    HyperparameterError
        If ``chunk`` is below one.

    Examples
    --------
    >>> net = HistoryNet(torch.Generator().manual_seed(0))
    >>> h = torch.randn(100, 5, generator=torch.Generator().manual_seed(0)) / 10
    >>> bool((ElementwiseRule(net).change(h.T) - net(h)).abs().max() < 1e-6)
    True
    """

    bounded = True

    def __init__(self, net: HistoryNet, chunk: int | None = None) -> None:
        if chunk is not None and chunk < 1:
            raise HyperparameterError("chunk", found=chunk, expected=">= 1")
        self.chunk = chunk
        self._streams = []
        for stream in (net.value, net.delta):
            inp, out, add = (_augmented(layer) for layer in (stream.inp, stream.out, stream.add))
            squeeze = torch.zeros(SQUEEZE + 1, inp.shape[1], dtype=torch.float64)
            squeeze[:SQUEEZE] = stream.squeeze.weight.double() @ inp
            squeeze[:SQUEEZE, -1] += stream.squeeze.bias.double()
            squeeze[SQUEEZE, -1] = 1  # relu(1) is the row of ones that the biases are multiplied by
            # torch's exp2 takes half the time of its exp
            gates = torch.cat([_augmented(stream.amp), _augmented(stream.exp) * math.log2(math.e)])
            past_gates = out[:, :-1] @ add
            past_gates[:, -1] += out[:, -1]
            matrices = (torch.cat([inp, squeeze]), gates, torch.cat([out[:, :-1], past_gates], dim=1))
            self._streams.append([m.detach().float().contiguous() for m in matrices])
        self._head = _augmented(net.head).detach().float()

    def __call__(self, history: Sequence[Float[Tensor, "*shape"]], steps: int) -> Tensor:
        """Write the prediction after ``steps`` >= 1 steps over the first of five snapshots, and return it.

        Snapshots may have any floating type; the prediction is computed in float32 and rounded once.
        """
        device = history[0].device
        if device != self._head.device:
            self._head = self._head.to(device)
            self._streams = [[m.to(device) for m in matrices] for matrices in self._streams]
        chunk = self.chunk or (CPU_CHUNK if device.type == "cpu" else GPU_CHUNK)
        rows = [snapshot.view(-1) for snapshot in history]
        workers = torch.get_num_threads() if device.type == "cpu" else 1
        if workers == 1 or len(rows[0]) < workers * PARALLEL_CHUNKS * chunk:
            self._advance(rows, steps, chunk)
        else:
            # one chunk is too little work for several threads, so each thread has chunks of its own
            with _one_thread_each(), ThreadPoolExecutor(workers) as pool:
                shares = zip(*(row.chunk(workers) for row in rows), strict=True)
                list(pool.map(self._advance, shares, repeat(steps), repeat(chunk)))
        return history[0]

    @torch.no_grad()
    def change(self, h_SN: Float[Tensor, "5 weights"]) -> Float[Tensor, " weights"]:
        """Return the predicted change of each weight, in (-1, 1), from float32 histories with one **row** per stage."""
        one_1N = torch.ones_like(h_SN[:1])
        halves = []
        for x, (inp, gates, last) in zip((h_SN, h_SN.diff(dim=0)), self._streams, strict=True):
            y = inp @ torch.cat([x, one_1N])
            f, z = y[:WIDTH], y[WIDTH:].relu_()
            amp, exponent = (gates @ z).split(WIDTH)
            torch.mul(amp, exponent.mul_(f).exp2_(), out=f)
            halves.append(torch.nn.functional.leaky_relu_(last @ y, SLOPE))
        return (self._head @ torch.cat([*halves, one_1N])).tanh_().squeeze(0)

    def _advance(self, rows: Sequence[Tensor], steps: int, chunk: int) -> None:
        # not Tensor.split: a hundred thousand views of a large tensor would take more memory than the tensor
        for start in range(0, len(rows[0]), chunk):
            window = torch.stack([row[start : start + chunk].float() for row in rows])
            for _ in range(steps):
                window = torch.cat([window[1:], window[-1:] + self.change(window)])
            rows[0][start : start + chunk] = window[-1]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let new threads run their operations alone; torch's setting is global and is restored."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _augmented(layer: torch.nn.Linear) -> Float[Tensor, "out in_and_bias"]:
    """Weight and bias as one matrix, in float64 so that the folded product rounds once."""
    return torch.cat([layer.weight, layer.bias.unsqueeze(1)], dim=1).double()
