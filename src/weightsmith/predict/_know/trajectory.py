"""Measured forgetting: fine-tune a network on ever smaller nested subsets of its own training data.

Stage ``s`` trains on the first ``floor(N r^s)`` samples of one fixed shuffle, so the subsets are nested, and starts
from the weights of stage ``s - 1``. The weights after each stage are the history from which retrodiction extrapolates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from weightsmith.core.data import Samples
from weightsmith.core.errors import CalibrationError, HyperparameterError, ShapeError
from weightsmith.core.io import atomic_output
from weightsmith.core.progress import track
from weightsmith.core.tied import tensor_owners
from weightsmith.core.training import modes_restored
from weightsmith.predict._know.network import STAGES

__all__ = ["ForgettingTrajectory", "Trajectory", "nested_sizes"]


@dataclass(frozen=True)
class Trajectory(Sequence[Mapping[str, Tensor]]):
    """State dicts of one network, **smallest training set first**; the last one is the pretrained network.

    Attributes
    ----------
    snapshots : tuple of state dicts
    sizes : tuple of int
        Training samples of each snapshot, ascending.

    Raises
    ------
    ShapeError
        If there is not one size for each snapshot.
    HyperparameterError
        If the sizes descend: the order is wrong, and retrodiction would predict *more* forgetting.

    Examples
    --------
    >>> Trajectory(({"w": torch.zeros(1)}, {"w": torch.ones(1)}), (50, 100))[-1]["w"]
    tensor([1.])
    >>> Trajectory(({}, {}), (100, 50))
    Traceback (most recent call last):
    ...
    weightsmith.core.errors.HyperparameterError: sizes of the trajectory: found (100, 50), ...
    """

    snapshots: tuple[Mapping[str, Tensor], ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.snapshots):
            raise ShapeError("sizes of the trajectory", found=len(self.sizes), expected=len(self.snapshots))
        if list(self.sizes) != sorted(self.sizes):
            raise HyperparameterError(
                "sizes of the trajectory",
                found=self.sizes,
                expected="ascending sizes",
                do="Order the snapshots from the smallest training set to the full one.",
            )

    def __getitem__(self, index: Any) -> Any:
        return self.snapshots[index]

    def __len__(self) -> int:
        return len(self.snapshots)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write ``stage-1-of-5.safetensors`` (smallest training set) and so on; each notes its samples.

        Returns
        -------
        list of Path
            In the order :func:`weightsmith.predict.know` takes them.
        """
        from safetensors.torch import save_file

        folder, count = Path(folder), len(self.snapshots)
        names = [f"stage-{index + 1}-of-{count}.safetensors" for index in range(count)]
        with atomic_output(folder, overwrite=overwrite) as target:
            for name, snapshot, size in zip(names, self.snapshots, self.sizes, strict=True):
                owners = tensor_owners(snapshot)
                once = {name: tensor.contiguous() for name, tensor in snapshot.items() if owners[name] == name}
                save_file(once, target / name, metadata={"format": "pt", "samples": str(size)})
        return [folder / name for name in names]


@dataclass
class ForgettingTrajectory:
    """Fine-tune a trained network on nested subsets and record its weights after each.

    Parameters
    ----------
    model : nn.Module
        The network, trained on ``dataset``. It is fine-tuned in place, and its weights are restored at the end.
    fit : callable
        ``fit(model, subset)`` trains the model in place on a :class:`torch.utils.data.Subset`; called once for
        each stage after the first. Keep the optimizer in a closure to carry its state from stage to stage.
    dataset : Samples
        What the model was trained on, or a proxy of it: any data set with a length and an index.
    ratio : float in (0, 1), default: 0.5
        Each stage has this share of the samples of the one before; one step of retrodiction then stands for
        ``1 / ratio`` times the data.
    stages : int, default: 5
        Snapshots, the trained network included.
    seed : int, default: 0
        Of the shuffle.
    batch_size : int, default: 1
        Samples the smallest stage must have at least.
    restart_each_stage : bool, default: False
        Start every stage from the trained weights, as the authors' sample collector does, instead of from the
        stage before, as their paper says.

    Raises
    ------
    HyperparameterError
        If ``ratio`` or ``stages`` is out of range.
    CalibrationError
        If the smallest stage has fewer samples than one batch.

    References
    ----------
    Jang, Kim, Kim. "Learning from Oblivion". CVPR 2026. arXiv:2508.05059.

    Examples
    --------
    >>> model = nn.Linear(2, 1)
    >>> def fit(model, subset):
    ...     with torch.no_grad():
    ...         model.bias.fill_(len(subset))
    >>> trajectory = ForgettingTrajectory(model, fit, torch.zeros(32, 2), batch_size=2).collect()
    >>> [int(snapshot["bias"]) for snapshot in trajectory[:-1]], trajectory.sizes
    ([2, 4, 8, 16], (2, 4, 8, 16, 32))
    """

    model: nn.Module
    fit: Callable[[nn.Module, Subset[Any]], object]
    dataset: Samples
    ratio: float = 0.5
    stages: int = STAGES
    seed: int = 0
    batch_size: int = 1
    restart_each_stage: bool = False

    def __post_init__(self) -> None:
        sizes = nested_sizes(len(self.dataset), self.ratio, self.stages)
        if sizes[-1] < self.batch_size:
            raise CalibrationError(
                f"samples of the smallest of {self.stages} stages",
                found=sizes[-1],
                expected=f">= one batch of {self.batch_size}",
                do="Take fewer stages, a larger ratio or a smaller batch.",
            )

    def subsets(self) -> list[Subset[Any]]:
        """Return the nested subsets, largest first: each is a prefix of the one before."""
        count = len(self.dataset)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed)).tolist()
        return [
            Subset(self.dataset, order[:size])  # type: ignore[arg-type]
            for size in nested_sizes(count, self.ratio, self.stages)
        ]

    def collect(self) -> Trajectory:
        """Fine-tune stage by stage and return the snapshots; weights and modes of the model are restored."""
        subsets = self.subsets()
        trained = _snapshot(self.model)
        snapshots = [trained]
        with modes_restored(self.model):
            try:
                for subset in track(subsets[1:], "forgetting in stages"):
                    if self.restart_each_stage:
                        self.model.load_state_dict(trained)
                    self.fit(self.model, subset)
                    snapshots.append(_snapshot(self.model))
            finally:
                self.model.load_state_dict(trained)
        return Trajectory(tuple(reversed(snapshots)), tuple(len(subset) for subset in reversed(subsets)))


def nested_sizes(count: int, ratio: float = 0.5, stages: int = STAGES) -> list[int]:
    """Return the samples of each stage, ``floor(count * ratio ** s)``, largest first.

    Raises
    ------
    HyperparameterError
        If ``ratio`` is not in (0, 1) or there are fewer than two stages.

    Examples
    --------
    >>> nested_sizes(50000)
    [50000, 25000, 12500, 6250, 3125]
    """
    if not 0 < ratio < 1:
        raise HyperparameterError("ratio of the nested subsets", found=ratio, expected="a number in (0, 1)")
    if stages < 2:
        raise HyperparameterError("stages of the trajectory", found=stages, expected="at least 2")
    return [int(count * ratio**stage) for stage in range(stages)]


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy the state dict; tied weights stay one tensor."""
    state = model.state_dict()
    owners = tensor_owners(state)
    copies = {owner: state[owner].detach().clone() for owner in dict.fromkeys(owners.values())}
    return {name: copies[owner] for name, owner in owners.items()}
