"""What the generator must beat: the zoo's mean, the member of the most similar task, plain regression, a Gaussian."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from weightsmith.core.errors import CalibrationError, HyperparameterError
from weightsmith.core.training import draw_seed, fit
from weightsmith.predict._d2nwg.conditions import draw_shots
from weightsmith.predict._zoo import WeightZoo

__all__ = ["Hypernetwork", "PrincipalGaussian", "nearest", "zoo_mean"]


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


class Hypernetwork(nn.Module):
    """Regress the weights on the condition: the same encoder, two hidden layers, squared error; nothing is drawn.

    Parameters
    ----------
    zoo : WeightZoo
        What to learn from, with examples.
    encoder : nn.Module
        As for :class:`~weightsmith.predict.WeightDiffusion`.
    width : int, default: 512
        Hidden units.
    shots : int, default: 5
        Examples of a class drawn anew in every step.
    """

    mean_P: Tensor

    def __init__(self, zoo: WeightZoo, encoder: nn.Module, *, width: int = 512, shots: int = 5) -> None:
        super().__init__()
        if zoo.support_NCSF is None:
            raise CalibrationError("examples in the zoo", found="none", expected="some of every member's task")
        self.zoo, self.encoder, self.shots = zoo, encoder, shots
        weights = zoo.weights_NP.shape[1]
        self.register_buffer("mean_P", torch.from_numpy(zoo.weights_NP.mean(0)))
        self.spread = float(zoo.weights_NP.std())
        condition = int(encoder.out_features)  # type: ignore[arg-type]
        self.layers = nn.Sequential(
            nn.Linear(condition, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, weights)
        )

    def forward(self, support_BCSF: Float[Tensor, "B C S F"]) -> Float[Tensor, "B P"]:
        """Return rows of weights."""
        return self.layers(self.encoder(support_BCSF)) * self.spread + self.mean_P

    def fit(
        self,
        *,
        steps: int = 6000,
        batch_size: int = 128,
        learning_rate: float = 5e-4,
        generator: torch.Generator | None = None,
    ) -> Hypernetwork:
        """Train."""
        support, weights = self.zoo.support_NCSF, self.zoo.weights_NP
        assert support is not None
        seed = draw_seed(generator)

        def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
            index = batch[0].cpu().numpy()
            few = draw_shots(torch.from_numpy(support[index]), self.shots).to(self.mean_P)
            error = model(few) - torch.from_numpy(weights[index]).to(self.mean_P)
            return (error / self.spread).square().mean()

        drawn = torch.randint(len(self.zoo), (steps * batch_size,), generator=torch.Generator().manual_seed(seed))
        optimizer = torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=0.01)
        fit(self, TensorDataset(drawn), loss=loss, optimizer=optimizer, batch_size=batch_size, seed=seed)
        return self

    @torch.no_grad()
    def predict(self, support_CSF: Float[Tensor, "C S F"]) -> dict[str, Tensor]:
        """Return the weights for a task."""
        return self.zoo.state_dict(self(support_CSF.to(self.mean_P)[None])[0].cpu())


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
