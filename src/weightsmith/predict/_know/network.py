r"""The predictor network of KNOW: 9,425 parameters that map a weight's history to its next change.

For a batch of histories ``h`` (five values per weight, smallest training set first) and their differences ``dh``

.. math::
    f &= x A_0 + a_0, \qquad z = \mathrm{relu}(f A_1 + a_1) \\
    y &= (z A_3 + a_3) \odot \exp\!\big((z A_4 + a_4) \odot f\big) + (z A_2 + a_2) \\
    o(x) &= \mathrm{LeakyReLU}_{0.3}(y A_5 + a_5) \\
    \mathrm{out} &= \tanh\!\big([\,o_1(h),\; o_2(\Delta h)\,] B + b\big) \\
    \hat\theta &= h_4 + \mathrm{out}

Legend: ``N`` weights, ``S`` stages, ``F`` features.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.errors import CheckpointError, MissingDependencyError

__all__ = ["HistoryNet", "load_keras_h5"]

STAGES = 5
WIDTH, SQUEEZE, OUT = 64, 8, 32
SLOPE = 0.3  # the default of Keras' LeakyReLU, which the published predictors were trained with; torch's is 0.01


class _Stream(nn.Module):
    """One of the two streams: gated exponential features of the history or of its differences."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.inp = nn.Linear(inputs, WIDTH)
        self.squeeze = nn.Linear(WIDTH, SQUEEZE)
        self.add = nn.Linear(SQUEEZE, WIDTH)
        self.amp = nn.Linear(SQUEEZE, WIDTH)
        self.exp = nn.Linear(SQUEEZE, WIDTH)
        self.out = nn.Linear(WIDTH, OUT)

    def forward(self, x_NS: Float[Tensor, "weights stages"]) -> Float[Tensor, "weights features"]:
        f_NF = self.inp(x_NS)
        z = torch.relu(self.squeeze(f_NF))
        y_NF = self.amp(z) * torch.exp(self.exp(z) * f_NF) + self.add(z)
        return nn.functional.leaky_relu(self.out(y_NF), SLOPE)


class HistoryNet(nn.Module):
    """The published architecture, one instance for each kind of weight.

    Parameters
    ----------
    generator : torch.Generator, optional
        Source of the initial weights: variance scaling 0.1 (fan-in, uniform) for the first and last layer of each
        stream, Glorot uniform for the others, biases zero.

    References
    ----------
    Jang, Kim, Kim. "Learning from Oblivion: Predicting Knowledge-Overflowed Weights via Retrodiction of Forgetting".
    CVPR 2026. arXiv:2508.05059.

    Examples
    --------
    >>> net = HistoryNet(torch.Generator().manual_seed(0))
    >>> sum(p.numel() for p in net.parameters())
    9425
    >>> net(torch.zeros(3, 5)).shape
    torch.Size([3])
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.value = _Stream(STAGES)
        self.delta = _Stream(STAGES - 1)
        self.head = nn.Linear(2 * OUT, 1)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                rows, columns = layer.weight.shape
                small = name.endswith((".inp", ".out"))
                bound = (0.3 / columns if small else 6 / (rows + columns)) ** 0.5
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, h_NS: Float[Tensor, "weights 5"]) -> Float[Tensor, " weights"]:
        """Return the predicted change of each weight, in (-1, 1).

        Parameters
        ----------
        h_NS : Tensor of shape (weights, 5)
            Each weight's value after training on the smallest ... the largest data set.

        Returns
        -------
        Tensor of shape (weights,)
        """
        streams = torch.cat([self.value(h_NS), self.delta(h_NS.diff(dim=1))], dim=1)
        return torch.tanh(self.head(streams)).squeeze(1)


# The order in which Keras numbered the dense layers: dense, dense_1, ..., dense_12.
_KERAS_ORDER = [
    *(f"{stream}.{layer}" for stream in ("value", "delta") for layer in ("inp", "squeeze", "add", "amp", "exp", "out")),
    "head",
]


def load_keras_h5(path: str | Path) -> HistoryNet:
    """Read one of the authors' ``KNOWN_*.h5`` files (Keras 2 layout).

    Parameters
    ----------
    path : path
        The file; weightsmith does not ship it, as it has no licence.

    Returns
    -------
    HistoryNet

    Raises
    ------
    MissingDependencyError
        If ``h5py`` is not installed.
    CheckpointError
        If the file does not hold the 26 arrays of this network.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError("reading Keras files needs h5py", do="pip install 'weightsmith[keras]'") from error
    net = HistoryNet()
    state = {}
    try:
        with h5py.File(path) as file:
            for index, ours in enumerate(_KERAS_ORDER):
                layer = f"dense_{index}" if index else "dense"
                arrays = file[layer][layer]
                # Keras stores kernels as [in, out], torch as [out, in].
                state[f"{ours}.weight"] = torch.from_numpy(arrays["kernel:0"][()]).T.contiguous()
                state[f"{ours}.bias"] = torch.from_numpy(arrays["bias:0"][()])
        net.load_state_dict(state)
    except (OSError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is not a KNOW predictor", found=error, expected="layers dense, dense_1, ..., dense_12"
        ) from error
    return net
