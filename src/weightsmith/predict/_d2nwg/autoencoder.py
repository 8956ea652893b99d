r"""Variational autoencoders of weight vectors, and their loss.

.. math::
    \mathcal L = a \lVert w - \hat w\rVert_1 + b\,\tfrac1P \lVert w - \hat w\rVert_2^2
               + \beta\, \mathrm{KL}(\mathcal N(\mu, \sigma^2)\,\Vert\,\mathcal N(0, 1))

Legend: ``B`` members, ``P`` weights, ``Z`` latent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.errors import HyperparameterError

__all__ = ["ConvolutionalVAE", "Encoded", "VAELoss", "WeightVAE"]


class Encoded(NamedTuple):
    """A Gaussian over latents.

    Attributes
    ----------
    mean, logvar : Tensor of shape (members, latent)
        Its parameters.
    """

    mean: Tensor
    logvar: Tensor

    def sample(self, noise_BZ: Float[Tensor, "B Z"]) -> Float[Tensor, "B Z"]:
        """Return mean plus standard deviation times ``noise_BZ``."""
        return self.mean + (self.logvar / 2).exp() * noise_BZ

    def kl(self) -> Float[Tensor, ""]:
        """The divergence from the standard normal, summed over latents and averaged over members.

        Examples
        --------
        >>> Encoded(torch.ones(2, 3), torch.zeros(2, 3)).kl()
        tensor(1.5000)
        """
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).sum(1).mean()


class VAELoss(NamedTuple):
    """Weights of the three parts; the defaults are those of the authors' code.

    Attributes
    ----------
    absolute : float
        Of the absolute error, summed over weights and averaged over members.
    squared : float
        Of the squared error, averaged over both.
    kl : float
        Of the divergence.
    """

    absolute: float = 1.0
    squared: float = 1000.0
    kl: float = 1e-6

    def __call__(self, x_BP: Float[Tensor, "B P"], again_BP: Float[Tensor, "B P"], code: Encoded) -> Float[Tensor, ""]:
        """Return the loss.

        Examples
        --------
        >>> zero = Encoded(torch.zeros(1, 1), torch.zeros(1, 1))
        >>> VAELoss()(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2), zero)
        tensor(501.)
        """
        error_BP = x_BP - again_BP
        absolute = error_BP.abs().sum() / len(error_BP)
        return self.absolute * absolute + self.squared * error_BP.square().mean() + self.kl * code.kl()


class WeightVAE(nn.Module):
    """One hidden layer each way: for heads, adapters and small networks, up to some 20,000 weights.

    Parameters
    ----------
    weights : int
        Of a member.
    latent : int, default: 64
        Numbers that stand for a member.
    width : int, default: 256
        Hidden units.

    Examples
    --------
    >>> vae = WeightVAE(10, latent=4)
    >>> vae.decode(vae.encode(torch.zeros(2, 10)).mean).shape
    torch.Size([2, 10])
    """

    def __init__(self, weights: int, *, latent: int = 64, width: int = 256) -> None:
        super().__init__()
        if min(weights, latent, width) < 1:
            raise HyperparameterError("weights, latent, width", found=(weights, latent, width), expected=">= 1")
        self.latent = latent
        # squares summed over the weights: vectors this short need no more; the defaults are the convolutional one's
        self.loss = VAELoss(absolute=0.0, squared=float(weights), kl=1e-3)
        self.encoder = nn.Sequential(nn.Linear(weights, width), nn.SiLU(), nn.Linear(width, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, width), nn.SiLU(), nn.Linear(width, weights))

    def encode(self, x_BP: Float[Tensor, "B P"]) -> Encoded:
        """Return the latents' distribution."""
        return _gaussian(self.encoder(x_BP))

    def decode(self, z_BZ: Float[Tensor, "B Z"]) -> Float[Tensor, "B P"]:
        """Return the weights of latents."""
        return self.decoder(z_BZ)

    def forward(self, x_BP: Float[Tensor, "B P"]) -> tuple[Float[Tensor, "B P"], Encoded]:
        """Encode, draw and decode."""
        code = self.encode(x_BP)
        return self.decode(code.sample(torch.randn_like(code.mean))), code


class ConvolutionalVAE(nn.Module):
    """The authors' autoencoder: chunks of weights through a linear layer to an image, then latent diffusion's.

    Parameters
    ----------
    weights : int
        Of a member; padded with zeros to a multiple of ``chunks``.
    chunks : int, default: 1
        Parts that share the linear layer.
    chunk_features : int, default: 4096
        What a part is mapped to; all together make the image.
    image_channels, image_side : int, default: 1 and 64
        Of the image: ``chunks * chunk_features = image_channels * image_side ** 2``.
    channels : sequence of int, default: (128, 128, 256)
        Of the levels, each half as wide as the one before; the defaults are for small networks and heads. Full
        ResNet-18s take 924 chunks of 8192, 462 channels of side 128 and (64, 64, 64, 128).
    latent_channels : int, default: 4
        Of the latent image.

    Raises
    ------
    HyperparameterError
        If chunks and image do not fit together.
    """

    def __init__(
        self,
        weights: int,
        *,
        chunks: int = 1,
        chunk_features: int = 4096,
        image_channels: int = 1,
        image_side: int = 64,
        channels: tuple[int, ...] = (128, 128, 256),
        latent_channels: int = 4,
    ) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        if chunks * chunk_features != image_channels * image_side**2:
            raise HyperparameterError(
                "chunks * chunk_features",
                found=f"{chunks} * {chunk_features}",
                expected=f"image_channels * image_side ** 2 = {image_channels * image_side**2}",
            )
        self.weights, self.chunks, length = weights, chunks, -(-weights // chunks)
        self.image = (image_channels, image_side, image_side)
        side = image_side // 2 ** (len(channels) - 1)
        self.latent_image = (latent_channels, side, side)
        self.latent = latent_channels * side * side
        self.loss = VAELoss()
        self.spread, self.gather = nn.Linear(length, chunk_features), nn.Linear(chunk_features, length)
        self.images: Any = AutoencoderKL(
            in_channels=image_channels,
            out_channels=image_channels,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=2,
            latent_channels=latent_channels,
            norm_num_groups=2,
        )

    def encode(self, x_BP: Float[Tensor, "B P"]) -> Encoded:
        """Return the latents' distribution."""
        padded = nn.functional.pad(x_BP, (0, self.spread.in_features * self.chunks - self.weights))
        hidden = nn.functional.leaky_relu(self.spread(padded.unflatten(1, (self.chunks, -1))))
        moments = self.images.encode(hidden.flatten(1).unflatten(1, self.image), return_dict=False)[0].parameters
        return _gaussian(moments.flatten(1))

    def decode(self, z_BZ: Float[Tensor, "B Z"]) -> Float[Tensor, "B P"]:
        """Return the weights of latents."""
        image = self.images.decode(z_BZ.unflatten(1, self.latent_image), return_dict=False)[0]
        return self.gather(image.flatten(1).unflatten(1, (self.chunks, -1))).flatten(1)[:, : self.weights]

    def forward(self, x_BP: Float[Tensor, "B P"]) -> tuple[Float[Tensor, "B P"], Encoded]:
        """Encode, draw and decode."""
        code = self.encode(x_BP)
        return self.decode(code.sample(torch.randn_like(code.mean))), code


def _gaussian(moments: Tensor) -> Encoded:
    mean, logvar = moments.chunk(2, dim=1)
    return Encoded(mean, logvar.clamp(-30, 20))
