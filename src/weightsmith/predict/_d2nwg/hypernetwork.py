"""Regression in place of diffusion: the weights that are expected for a task, and nothing is drawn."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from weightsmith.core.errors import CalibrationError
from weightsmith.core.training import draw_seed, fit
from weightsmith.predict._d2nwg.conditions import draw_shots
from weightsmith.predict._zoo import WeightZoo

__all__ = ["Hypernetwork"]


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
        optimizer = torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
        fit(self, TensorDataset(drawn), loss=loss, optimizer=optimizer, batch_size=batch_size, seed=seed)
        return self

    @torch.no_grad()
    def predict(self, support_CSF: Float[Tensor, "C S F"]) -> dict[str, Tensor]:
        """Return the weights for a task."""
        return self.zoo.state_dict(self(support_CSF.to(self.mean_P)[None])[0].cpu())
