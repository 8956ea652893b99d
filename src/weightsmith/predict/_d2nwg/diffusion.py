r"""The generator: compress the zoo, learn the latents' distribution given the task, draw and decode.

Legend: ``N`` members, ``P`` weights, ``Z`` latent, ``E`` condition, ``C`` classes, ``S`` examples, ``F`` features.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import CalibrationError, HyperparameterError, ShapeError, WeightsmithError
from weightsmith.core.training import draw_seed, fit
from weightsmith.predict._d2nwg.autoencoder import Encoded, WeightVAE
from weightsmith.predict._d2nwg.conditions import draw_shots
from weightsmith.predict._d2nwg.noise import NoiseVectors
from weightsmith.predict._zoo import WeightZoo

__all__ = ["Sampler", "WeightDiffusion", "ema_decay"]

Sampler = Literal["ddim", "ddpm"]

COLLAPSED = 0.05
"""Spread of the latents' means below which the autoencoder has learnt nothing."""

KEPT = 0.98
"""Share of their score that decoded members should keep before a diffusion model is worth its training."""

GATED = 20
"""Members that are decoded to find out."""

ALIKE = 0.1
"""Likeness of members below which they seem to come from different initialisations."""


class _Denoiser(nn.Module):
    """The condition's encoder and the noise network, trained together."""

    def __init__(self, encoder: nn.Module | None, network: nn.Module) -> None:
        super().__init__()
        self.encoder, self.network = encoder, network

    def condition(self, support_BCSF: Tensor | None, count: int, like: Tensor) -> Tensor:
        return like.new_zeros(count, 0) if self.encoder is None else self.encoder(support_BCSF)

    def forward(self, z_BZ: Tensor, time_B: Tensor, support_BCSF: Tensor | None) -> Tensor:
        return self.network(z_BZ, time_B, self.condition(support_BCSF, len(z_BZ), z_BZ))


class WeightDiffusion(nn.Module):
    """Draws weights for new tasks; a module, so that ``state_dict`` holds all that was learnt.

    Parameters
    ----------
    zoo : WeightZoo
        What to learn from.
    encoder : nn.Module, optional
        Turns examples ``[B, C, S, F]`` into a condition of ``out_features`` numbers, see
        :class:`~weightsmith.predict._d2nwg.conditions.OrderedEncoder`. None draws without a condition.
    vae : nn.Module, optional
        The autoencoder; by default a :class:`~weightsmith.predict._d2nwg.autoencoder.WeightVAE`.
    network : nn.Module, optional
        The noise network, by default
        :class:`~weightsmith.predict._d2nwg.noise.NoiseVectors`; called with latents, times and conditions.
    timesteps : int, default: 1024
        Steps of the diffusion.
    beta_start, beta_end : float, default: 0.0015 and 0.0155
        Variances of the first and the last step; the square roots between them are evenly spaced. 0 < start < end < 1.
    shots : int, default: 5
        Examples of a class drawn anew in every training step.
    zero_terminal_snr : bool, default: False
        Rescale the variances so that nothing is left of the latent at the last step, where sampling starts from pure
        noise; unchanged, 2 % of it is. The network then predicts a velocity, a mixture of noise and latent (Lin et al.
        2023, arXiv 2305.08891), since the noise alone says nothing of the latent there.

    Attributes
    ----------
    latent_scale : Tensor of shape ()
        What latents are multiplied by to have variance 1.
    reconstruction_error : float
        Squared error of the decoded zoo over its variance.
    losses : dict of str to list of float
        Of both stages, step by step.

    Raises
    ------
    CalibrationError
        If there is an encoder, and the zoo has no examples or fewer than ``shots``.

    Examples
    --------
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...>
    >>> zoo = WeightZoo.from_state_dicts([nn.Linear(2, 2).state_dict() for _ in range(8)])
    >>> generator = WeightDiffusion(zoo, vae=WeightVAE(6, latent=2)).fit(vae_steps=200, steps=20, batch_size=8)
    >>> [sorted(state) for state in generator.sample(count=2)]
    [['bias', 'weight'], ['bias', 'weight']]
    """

    mean_P: Tensor
    spread_P: Tensor
    latent_scale: Tensor

    def __init__(
        self,
        zoo: WeightZoo,
        encoder: nn.Module | None = None,
        *,
        vae: nn.Module | None = None,
        network: nn.Module | None = None,
        timesteps: int = 1024,
        beta_start: float = 0.0015,
        beta_end: float = 0.0155,
        shots: int = 5,
        zero_terminal_snr: bool = False,
    ) -> None:
        super().__init__()
        if encoder is not None and (zoo.support_NCSF is None or zoo.support_NCSF.shape[2] < shots):
            found = "none" if zoo.support_NCSF is None else zoo.support_NCSF.shape[2]
            raise CalibrationError("examples of a class in the zoo", found=found, expected=f"{shots} or more")
        if not 0 < beta_start < beta_end < 1 or timesteps < 2 or shots < 1:
            found = f"{beta_start}, {beta_end}, {timesteps}, {shots}"
            raise HyperparameterError(
                "beta_start, beta_end, timesteps, shots", found=found, expected="0 < start < end < 1, >= 2, >= 1"
            )
        self.zoo, self.shots = zoo, shots
        weights = torch.from_numpy(zoo.weights_NP.mean(0, dtype="float64")).float()
        spread = torch.ones_like(weights)
        for slot in zoo.slots:
            centred = zoo.weights_NP[:, slot.place] - weights[slot.place].numpy()
            spread[slot.place] = max(float(centred.std(dtype="float64")) if slot.size else 1.0, 1e-12)
        self.register_buffer("mean_P", weights)
        self.register_buffer("spread_P", spread)
        self.register_buffer("latent_scale", torch.full((), math.nan))  # until fit
        self.vae: Any = WeightVAE(len(weights)) if vae is None else vae
        latent: Any = self.vae.latent
        condition = 0 if encoder is None else int(encoder.out_features)  # type: ignore[arg-type]
        self.denoiser = _Denoiser(encoder, network or NoiseVectors(latent, condition))
        self.averaged = copy.deepcopy(self.denoiser).requires_grad_(False)
        self.betas = {"beta_start": beta_start, "beta_end": beta_end, "beta_schedule": "scaled_linear"}
        self.betas |= {"num_train_timesteps": timesteps, "rescale_betas_zero_snr": zero_terminal_snr}
        self.losses: dict[str, list[float]] = {}
        self.reconstruction_error = math.nan

    def fit(
        self,
        *,
        vae_steps: int = 3000,
        steps: int = 6000,
        batch_size: int = 128,
        vae_learning_rate: float = 1e-3,
        learning_rate: float = 5e-4,
        warmup: float = 0.0,
        average: float = 0.9999,
        evaluate: Callable[[dict[str, Tensor]], float] | None = None,
        generator: torch.Generator | None = None,
    ) -> WeightDiffusion:
        """Train the autoencoder, then the diffusion model and the encoder.

        Parameters
        ----------
        vae_steps, steps : int, default: 3000 and 6000
            Optimizer steps of the stages.
        batch_size : int, default: 128
            Members a step.
        vae_learning_rate, learning_rate : float, default: 1e-3 and 5e-4
            Of Adam and AdamW.
        warmup : float, default: 0.0
            Share of the second stage's steps over which its rate rises.
        average : float, default: 0.9999
            Largest decay of the running average of the second stage's weights, which samples are drawn with.
        evaluate : callable, optional
            Score of a state dict, higher is better. Decoded members should keep 98 % of theirs; found out before the
            second stage.
        generator : torch.Generator, optional
            Of everything random.

        Warns
        -----
        UserWarning
            If members seem to come from different initialisations, or lose too much of their score.

        Raises
        ------
        WeightsmithError
            If the autoencoder collapses: all members get nearly the same latent.
        HyperparameterError
            If a number is out of range.
        """
        for name, value in (("vae_steps", vae_steps), ("steps", steps), ("batch_size", batch_size)):
            if value < 1:
                raise HyperparameterError(name, found=value, expected=">= 1")
        if (cosine := self.zoo.mean_cosine_similarity()) < ALIKE:
            warnings.warn(
                f"members seem to come from different initialisations (cosine of their units {cosine:.2f}, expected "
                f">= {ALIKE}): an autoencoder learns little of permuted networks. Match all members' units to the "
                "first one's with weightsmith.merge.match_weights, or train them from the same start.",
                stacklevel=2,
            )
        self._fit_vae(vae_steps, batch_size, vae_learning_rate, generator)
        codes = self._encode(evaluate, generator)
        self._fit_denoiser(codes, steps, batch_size, learning_rate, warmup, average, generator)
        return self.eval()

    @torch.no_grad()
    def sample(
        self,
        support_CSF: Float[Tensor, "C S F"] | None = None,
        count: int = 1,
        *,
        sampler: Sampler = "ddim",
        steps: int = 50,
        generator: torch.Generator | None = None,
    ) -> list[dict[str, Tensor]]:
        """Draw state dicts for a task.

        Parameters
        ----------
        support_CSF : Tensor of shape (classes, examples, features), optional
            A few examples of each class, in the order of the network's outputs.
        count : int, default: 1
            How many, >= 0. Each has its own noise: the first is the same however many follow.
        sampler : {"ddim", "ddpm"}, default: "ddim"
            Deterministic from the first noise, in few steps; or the authors', with noise in every step.
        steps : int, default: 50
            Steps, at most the diffusion's; for "ddpm" all of them are usual.
        generator : torch.Generator, optional
            Of the noise.

        Raises
        ------
        ShapeError
            If the examples are not what the encoder was made for, or missing, or not asked for.
        HyperparameterError
            If ``count`` or ``steps`` is out of range.
        WeightsmithError
            If it is not trained.
        """
        support_BCSF = None if support_CSF is None else support_CSF[None]
        rows = self.sample_rows(support_BCSF, count, sampler=sampler, steps=steps, generator=generator)
        return [self.zoo.state_dict(row) for row in rows.cpu()]

    @torch.no_grad()
    def sample_rows(
        self,
        support_BCSF: Float[Tensor, "B C S F"] | None = None,
        count: int = 1,
        *,
        sampler: Sampler = "ddim",
        steps: int = 50,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "draws P"]:
        """Draw rows of the zoo's matrix for many tasks together: ``count`` for the first, then for the next one.

        Parameters and errors as for :meth:`sample`.
        """
        scheduler = self._scheduler(sampler)
        if count < 0 or not 1 <= steps <= scheduler.config.num_train_timesteps:
            raise HyperparameterError(
                "count, steps", found=f"{count}, {steps}", expected="count >= 0, steps within the diffusion's"
            )
        if (support_BCSF is None) != (self.denoiser.encoder is None):
            expected = "none" if self.denoiser.encoder is None else "(classes, examples, features)"
            found = "none" if support_BCSF is None else tuple(support_BCSF.shape[1:])
            raise ShapeError("support", found=found, expected=expected)
        if not bool(self.latent_scale.isfinite()):
            raise WeightsmithError("the generator is not trained", do="Call fit, or load the state of a trained one.")
        if count == 0:
            return self.mean_P.new_zeros(0, len(self.mean_P))
        support = None if support_BCSF is None else support_BCSF.to(self.mean_P)
        tasks = 1 if support is None else len(support)
        condition_BE = self.averaged.condition(support, tasks, self.mean_P).repeat_interleave(count, 0)
        # each draw has its own noise
        device, draws = self.mean_P.device, len(condition_BE)
        seeds = torch.randint(2**62, (draws,), generator=generator).tolist()
        own = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        z_BZ = torch.stack([torch.randn(self.vae.latent, generator=one, device=device) for one in own])
        total = scheduler.config.num_train_timesteps
        times = [round(total * left / steps) - 1 for left in range(steps, 0, -1)]
        if sampler == "ddpm":
            scheduler.set_timesteps(timesteps=times, device=device)
        for time, later in zip(times, [*times[1:], -1], strict=True):
            time_B = torch.full((draws,), time, device=device)
            found_BZ = self.averaged.network(z_BZ, time_B, condition_BE)
            if sampler == "ddpm":
                z_BZ = scheduler.step(found_BZ, time, z_BZ, generator=own, return_dict=False)[0]
            else:
                z_BZ = _ddim_step(scheduler, found_BZ, z_BZ, time, later)
        return self._decode(z_BZ / self.latent_scale)

    @torch.no_grad()
    def decoded(self, index_B: Int[Tensor, " B"]) -> Float[Tensor, "B P"]:
        """Members encoded and decoded, nothing drawn."""
        return self._decode(self.vae.encode(self._rows(index_B)).mean)

    def _decode(self, z_BZ: Float[Tensor, "B Z"]) -> Float[Tensor, "B P"]:
        """Weights of latents, in the zoo's scale."""
        return self.vae.decode(z_BZ) * self.spread_P + self.mean_P

    def _scheduler(self, sampler: str) -> Any:
        from diffusers import DDPMScheduler

        check_choice("sampler", sampler, Sampler)
        predicted = "v_prediction" if self.betas["rescale_betas_zero_snr"] else "epsilon"
        return DDPMScheduler(**self.betas, clip_sample=False, prediction_type=predicted)

    def _rows(self, index_B: Int[Tensor, " B"]) -> Float[Tensor, "B P"]:
        """Members, centred and scaled."""
        rows = torch.from_numpy(self.zoo.weights_NP[index_B.cpu().numpy()]).to(self.mean_P)
        return (rows - self.mean_P) / self.spread_P

    def _fit_vae(self, steps: int, batch_size: int, rate: float, generator: torch.Generator | None) -> None:
        def loss(vae: nn.Module, batch: list[Tensor]) -> Tensor:
            rows_BP = self._rows(batch[0])
            return self.vae.loss(rows_BP, *vae(rows_BP))

        members, seed = self._members(steps, batch_size, generator)
        optimizer = torch.optim.Adam(self.vae.parameters(), lr=rate, fused=True)
        run = fit(self.vae, members, loss=loss, optimizer=optimizer, batch_size=batch_size, seed=seed)
        self.losses["autoencoder"] = run.losses

    @torch.no_grad()
    def _encode(
        self, evaluate: Callable[[dict[str, Tensor]], float] | None, generator: torch.Generator | None
    ) -> Encoded:
        """The latents of all members; checks that they tell members apart and keep what the members can do."""
        parts, error, total = [], 0.0, 0.0
        for index in torch.arange(len(self.zoo)).split(256):
            rows_BP = self._rows(index)
            parts.append(self.vae.encode(rows_BP))
            error += float((self.vae.decode(parts[-1].mean) - rows_BP).square().sum())
            total += float(rows_BP.square().sum())
        self.reconstruction_error = error / max(total, 1e-300)
        codes = Encoded(torch.cat([part.mean for part in parts]), torch.cat([part.logvar for part in parts]))
        spread = float(codes.mean.std(0, correction=0).square().mean().sqrt())
        if spread < COLLAPSED:
            raise WeightsmithError(
                "the autoencoder gives all members the same latent",
                found=f"a spread of {spread:.2g}",
                expected=f">= {COLLAPSED}",
                do="Train it longer, lower the divergence's weight (vae.loss), or use members of one initialisation.",
            )
        # over the whole zoo, where the authors take the first batch
        own = torch.Generator().manual_seed(draw_seed(generator))
        self.latent_scale = 1 / codes.sample(torch.randn(codes.mean.shape, generator=own).to(codes.mean)).std()
        if evaluate is not None:
            self._gate(codes, evaluate)
        return codes

    def _gate(self, codes: Encoded, evaluate: Callable[[dict[str, Tensor]], float]) -> None:
        decoded = self._decode(codes.mean[:GATED])
        after = sum(evaluate(self.zoo.state_dict(row)) for row in decoded.cpu())
        before = sum(evaluate(self.zoo.state_dict(row)) for row in self.zoo.weights_NP[:GATED])
        if after < KEPT * before:
            warnings.warn(
                f"decoded members keep {after / before:.1%} of their score, less than {KEPT:.0%}: samples will not be "
                "better. Train the autoencoder longer, or use members of one initialisation.",
                stacklevel=4,
            )

    def _fit_denoiser(
        self,
        codes: Encoded,
        steps: int,
        batch_size: int,
        rate: float,
        warmup: float,
        average: float,
        generator: torch.Generator | None,
    ) -> None:
        scheduler = self._scheduler("ddpm")
        support = self.zoo.support_NCSF if self.denoiser.encoder is not None else None

        def loss(denoiser: nn.Module, batch: list[Tensor]) -> Tensor:
            index_B = batch[0]
            mean_BZ = codes.mean[index_B]
            z_BZ = Encoded(mean_BZ, codes.logvar[index_B]).sample(torch.randn_like(mean_BZ)) * self.latent_scale
            time_B = torch.randint(scheduler.config.num_train_timesteps, index_B.shape, device=z_BZ.device)
            noise_BZ = torch.randn_like(z_BZ)
            noisy_BZ = scheduler.add_noise(z_BZ, noise_BZ, time_B)
            few = None if support is None else draw_shots(torch.from_numpy(support[index_B.cpu().numpy()]), self.shots)
            found_BZ = denoiser(noisy_BZ, time_B, None if few is None else few.to(z_BZ))
            velocity = scheduler.config.prediction_type == "v_prediction"
            wanted_BZ = scheduler.get_velocity(z_BZ, noise_BZ, time_B) if velocity else noise_BZ
            return (found_BZ - wanted_BZ).square().mean()

        def update(step: int, _: float) -> None:
            decay = ema_decay(step, average)
            for mine, its in zip(self.averaged.parameters(), self.denoiser.parameters(), strict=True):
                mine.lerp_(its.detach(), 1 - decay)

        members, seed = self._members(steps, batch_size, generator)
        optimizer = torch.optim.AdamW(self.denoiser.parameters(), lr=rate, weight_decay=0.01, fused=True)
        run = fit(
            self.denoiser,
            members,
            loss=loss,
            optimizer=optimizer,
            batch_size=batch_size,
            warmup=warmup,
            after_step=update,
            seed=seed,
        )
        self.losses["diffusion"] = run.losses

    def _members(self, steps: int, batch_size: int, generator: torch.Generator | None) -> tuple[TensorDataset, int]:
        """As many members as the steps need, drawn with replacement, and a seed."""
        seed = draw_seed(generator)
        own = torch.Generator().manual_seed(seed)
        return TensorDataset(torch.randint(len(self.zoo), (steps * batch_size,), generator=own)), seed


def _ddim_step(
    scheduler: Any, found_BZ: Float[Tensor, "B Z"], z_BZ: Float[Tensor, "B Z"], time: int, later: int
) -> Float[Tensor, "B Z"]:
    """Go from a time to any earlier one; from the first time on to -1, where no noise is left.

    (The step of diffusers takes all times to be equally far apart, which they are where the number of steps divides
    that of times.)
    """
    kept = scheduler.alphas_cumprod[time].to(z_BZ)
    then = scheduler.alphas_cumprod[later].to(z_BZ) if later >= 0 else torch.ones_like(kept)
    if scheduler.config.prediction_type == "v_prediction":
        start_BZ = kept.sqrt() * z_BZ - (1 - kept).sqrt() * found_BZ
        noise_BZ = kept.sqrt() * found_BZ + (1 - kept).sqrt() * z_BZ
    else:
        start_BZ, noise_BZ = (z_BZ - (1 - kept).sqrt() * found_BZ) / kept.sqrt(), found_BZ
    return then.sqrt() * start_BZ + (1 - then).sqrt() * noise_BZ


def ema_decay(step: int, largest: float = 0.9999) -> float:
    """The decay of the running average at its ``step``-th update, from 1.

    Examples
    --------
    >>> [round(ema_decay(step), 4) for step in (1, 2, 10, 100, 1000)]
    [0.1818, 0.25, 0.55, 0.9182, 0.9911]
    """
    return min(largest, (1 + step) / (10 + step))
