"""What D2NWG's draws must beat: the zoo's mean, the member of the most similar task, a Gaussian."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weightsmith.core.errors import CalibrationError, HyperparameterError
from weightsmith.predict import WeightZoo

__all__ = ["PrincipalGaussian", "nearest", "zoo_mean"]


def zoo_mean(zoo: WeightZoo) -> dict[str, Tensor]:
    """Return the mean of all members.

    Examples
    --------
    >>> states = [{"w": torch.tensor([0.0])}, {"w": torch.tensor([2.0])}]
    >>> zoo_mean(WeightZoo.from_state_dicts(states))
    {'w': tensor([1.])}
    """
    return zoo.state_dict(zoo.weights_NP.mean(0, dtype=np.float64))


def nearest(zoo: WeightZoo, support_CSF: Float[Tensor, "C S F"]) -> dict[str, Tensor]:
    """Return the member whose task is most like the given one: the least distance of the classes' mean features.

    Raises
    ------
    CalibrationError
        If the zoo has no examples.
    """
    if zoo.support_NCSF is None:
        raise CalibrationError("examples in the zoo", found="none", expected="some of every member's task")
    distance = (zoo.support_NCSF.mean(2) - support_CSF.mean(1).numpy()).reshape(len(zoo), -1)
    return zoo.state_dict(zoo.weights_NP[int((distance**2).sum(1).argmin())])


class PrincipalGaussian:
    """A Gaussian over the zoo's leading principal components; knows nothing of the task.

    Parameters
    ----------
    zoo : WeightZoo
        What to learn from.
    components : int, default: 64
        At most the members less one, or the weights.
    """

    def __init__(self, zoo: WeightZoo, components: int = 64) -> None:
        most = min(len(zoo) - 1, zoo.weights_NP.shape[1])
        if components < 1:
            raise HyperparameterError("components", found=components, expected=">= 1")
        self.zoo = zoo
        self.mean_P = torch.from_numpy(zoo.weights_NP.mean(0))
        centred = torch.from_numpy(np.asarray(zoo.weights_NP)) - self.mean_P
        _, size_Z, axes_PZ = torch.svd_lowrank(centred, q=min(components, most), niter=4)
        self.axes_ZP, self.spread_Z = axes_PZ.T, size_Z / (len(zoo) - 1) ** 0.5

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> list[dict[str, Tensor]]:
        """Draw state dicts."""
        noise = torch.randn(count, len(self.spread_Z), generator=generator)
        return [self.zoo.state_dict(row) for row in noise * self.spread_Z @ self.axes_ZP + self.mean_P]
