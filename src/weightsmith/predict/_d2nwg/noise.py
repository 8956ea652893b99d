"""Networks that predict the noise in latents: on vectors for a CPU, or the authors' on images.

Legend: ``B`` latents, ``Z`` numbers of one, ``E`` condition.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError

__all__ = ["NoiseImages", "NoiseVectors"]


class NoiseVectors(nn.Module):
    """Predict the noise in a latent vector: two hidden layers on latent, condition and time.

    Parameters
    ----------
    latent : int
        Numbers of a latent.
    condition : int
        Numbers of a condition; 0 without one.
    width : int, default: 512
        Hidden units.
    time_features : int, default: 64
        Sines and cosines of the time.

    Examples
    --------
    >>> NoiseVectors(4, 3)(torch.zeros(2, 4), torch.tensor([0, 9]), torch.zeros(2, 3)).shape
    torch.Size([2, 4])
    """

    def __init__(self, latent: int, condition: int, *, width: int = 512, time_features: int = 64) -> None:
        super().__init__()
        self.time_features = time_features
        self.layers = nn.Sequential(
            nn.Linear(latent + condition + time_features, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, latent),
        )

    def forward(self, z_BZ: Float[Tensor, "B Z"], time_B: Int[Tensor, " B"], condition_BE: Float[Tensor, "B E"]) -> Any:
        """Return the noise."""
        from diffusers.models.embeddings import get_timestep_embedding

        time_BT = get_timestep_embedding(time_B, self.time_features).to(z_BZ)
        return self.layers(torch.cat([z_BZ, condition_BE, time_BT], dim=1))


class NoiseImages(nn.Module):
    """The authors' network: a latent as a square image, the condition as a second channel, a U-Net on both.

    Parameters
    ----------
    latent : int, default: 1024
        Numbers of a latent, a square.
    condition : int
        Numbers of a condition.
    channels : sequence of int, default: (256, 256, 256, 512)
        Of the levels, at least three; the third and later ones attend.
    """

    def __init__(self, latent: int, condition: int, *, channels: tuple[int, ...] = (256, 256, 256, 512)) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.side = math.isqrt(latent)
        if self.side**2 != latent or self.side % 2 ** (len(channels) - 1):
            raise HyperparameterError(
                "latent", found=latent, expected=f"a square of a multiple of {2 ** (len(channels) - 1)}"
            )
        self.spread = nn.Linear(condition, latent)
        attends = [level >= 2 for level in range(len(channels))]
        self.network: Any = UNet2DModel(
            sample_size=self.side,
            in_channels=2,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=channels,
            down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
            up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            attention_head_dim=channels[-1] // 2,
            norm_num_groups=min(32, channels[0]),
        )

    def forward(self, z_BZ: Float[Tensor, "B Z"], time_B: Int[Tensor, " B"], condition_BE: Float[Tensor, "B E"]) -> Any:
        """Return the noise."""
        channels = torch.stack([z_BZ, self.spread(condition_BE)], dim=1).unflatten(2, (self.side, self.side))
        return self.network(channels, time_B, return_dict=False)[0].flatten(1)
