r"""Retrodiction: apply a predictor to every weight of a network, again and again for more virtual data.

.. math::
    \hat\theta_{-1} = g(\theta_{S-1}, \dots, \theta_1, \theta_0), \qquad
    \hat\theta_{-2} = g(\theta_{S-2}, \dots, \theta_0, \hat\theta_{-1}), \quad \dots
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import get_args

from safetensors.torch import load
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError
from weightsmith.core.io import TensorSpec, map_state_dicts
from weightsmith.core.tied import tensor_owners
from weightsmith.predict._know.elementwise import ElementwiseRule
from weightsmith.predict._know.network import HistoryNet, load_keras_h5
from weightsmith.predict._know.retrodiction import Retrodiction, TensorPredictor
from weightsmith.predict._know.routing import NOT_PREDICTED, Kind, Routing
from weightsmith.predict._know.smooth import SmoothRule

__all__ = ["KnowPredictor"]


@dataclass(frozen=True)
class KnowPredictor:
    """Predictors for the kinds of weights of a network.

    Parameters
    ----------
    name : str
        Where it comes from.
    rules : mapping of {"conv", "fc", "bias"} to TensorPredictor
        Kinds without a rule keep the trained weights.

    Examples
    --------
    >>> import torch
    >>> from weightsmith.predict import Trajectory
    >>> zero = HistoryNet()
    >>> for p in zero.head.parameters():
    ...     _ = nn.init.zeros_(p)
    >>> predictor = KnowPredictor("zero", {"fc": ElementwiseRule(zero)})
    >>> snapshots = [{"weight": torch.full((1, 2), 0.1 * s)} for s in range(5)]
    >>> predictor.retrodict(Trajectory(tuple(snapshots), (1, 2, 4, 8, 16)), steps=1)
    {'weight': tensor([[0.4000, 0.4000]])}
    """

    name: str
    rules: Mapping[Kind, TensorPredictor]

    @classmethod
    def from_pretrained(cls, name: str = "ours", *, chunk: int | None = None) -> KnowPredictor:
        """Load a predictor that comes with weightsmith, or the authors' files.

        Parameters
        ----------
        name : {"ours", "paper"} or path, default: "ours"
            "paper": the paper's architecture and loss. "ours": :class:`SmoothRule`, trained for the transfer itself.
            Both were meta-trained by ``tools/know`` of the repository. A folder: see :meth:`from_keras_h5`.
        chunk : int, optional
            Weights evaluated at a time.

        Raises
        ------
        HyperparameterError
            If there is no such predictor.
        """
        if name == "ours":
            return cls(name, {"conv": SmoothRule.from_tensors(_package_data("ours"))})
        if name == "paper":
            tensors = _package_data("paper")
            return cls(name, {kind: ElementwiseRule(_history_net(tensors, kind), chunk) for kind in get_args(Kind)})
        if Path(name).is_dir():
            return cls.from_keras_h5(name, chunk=chunk)
        raise HyperparameterError("predictor", found=name, expected="'ours', 'paper' or a folder of KNOWN_*.h5")

    @classmethod
    def from_keras_h5(cls, folder: str | Path, *, chunk: int | None = None) -> KnowPredictor:
        """Load the authors' ``KNOWN_Conv.h5``, ``KNOWN_FC.h5`` and ``KNOWN_Bias.h5`` from a folder.

        Raises
        ------
        CheckpointError
            If a file is missing or not in their layout.
        """
        files: dict[Kind, str] = {"conv": "KNOWN_Conv.h5", "fc": "KNOWN_FC.h5", "bias": "KNOWN_Bias.h5"}
        nets = {kind: load_keras_h5(Path(folder) / file) for kind, file in files.items()}
        return cls(str(folder), {kind: ElementwiseRule(net, chunk) for kind, net in nets.items()})

    def retrodict(
        self,
        trajectory: Sequence[Mapping[str, Tensor]],
        *,
        steps: int = 3,
        model: nn.Module | None = None,
        skip: tuple[type[nn.Module], ...] = NOT_PREDICTED,
        routing: Routing = "rank",
        predict_frozen: bool = False,
    ) -> dict[str, Tensor]:
        """Predict the weights that ``(1 / ratio) ** steps`` times the data would have given.

        Parameters
        ----------
        trajectory : Trajectory, or five state dicts
            **Smallest training set first**, the trained network last.
        steps : int >= 0, default: 3
            How often the prediction is made from the shifted history; 0 returns the trained network.
        model : nn.Module, optional
            Used to skip modules by type instead of by name; it does not change.
        skip : tuple of types
            Modules of ``model`` whose tensors do not change; default: normalization layers and embeddings.
        routing : {"rank", "kernel_size"}, default: "rank"
            See :func:`route`.
        predict_frozen : bool, default: False
            Also predict tensors that never changed along the trajectory.

        Returns
        -------
        dict of str to Tensor
            A complete state dict, an initialization for transfer. Recompute the running statistics of batch
            normalization before using it without fine-tuning.

        Raises
        ------
        HyperparameterError
            If there are not five snapshots or ``steps`` is negative.
        ShapeError
            If the snapshots differ in keys, shapes or types.
        NonFiniteError
            If a snapshot holds NaN or infinity.
        UnsupportedModelError
            If the network is quantized or parametrized.

        Warns
        -----
        UserWarning
            If nothing was forgotten, the network has no normalization layers, weights lie outside the predictor's
            range, or layers shrink below 0.3 of their norm.
        """
        trained = trajectory[-1] if len(trajectory) else {}
        aliases = tensor_owners(trained)
        once = set(aliases.values())
        states = [
            {key: tensor for key, tensor in snapshot.items() if key in once or key not in aliases}
            for snapshot in trajectory
        ]
        predict = Retrodiction(
            self.rules,
            [_InMemory(state) for state in states],
            steps=steps,
            model=model,
            skip=skip,
            routing=routing,
            predict_frozen=predict_frozen,
            overwrite_history=False,
        )
        predicted = map_state_dicts(states, predict)
        kept = {key: tensor.detach().clone() for key, tensor in predicted.items() if key not in predict.measures}
        predicted |= kept
        for note in predict.notes:
            warnings.warn(note, UserWarning, stacklevel=2)
        return {key: predicted[owner] for key, owner in aliases.items()}


class _InMemory:
    """A state dict as a source."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self.specs = {key: TensorSpec.of(tensor) for key, tensor in state.items()}

    def tensor(self, key: str) -> Tensor:
        return self._state[key]


def _package_data(name: str) -> dict[str, Tensor]:
    return load(resources.files("weightsmith.predict._know").joinpath(f"{name}.safetensors").read_bytes())


def _history_net(tensors: Mapping[str, Tensor], kind: Kind) -> HistoryNet:
    net = HistoryNet()
    prefix = f"{kind}."
    net.load_state_dict({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
    return net
