"""The search itself: steps of the architecture parameters and of the weights in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn

from weightsmith.core.data import Samples, batched, pad_token_id, read, to_model
from weightsmith.core.errors import NonFiniteError
from weightsmith.core.processes import plain_model, process_count, process_rank
from weightsmith.core.training import Fit, FitOptions, batch_count, default_loss, fit
from weightsmith.search._tanglenas.samplers import DrNAS, Sampler
from weightsmith.search._tanglenas.supernet import Supernet

__all__ = ["TRAINING", "Bilevel", "Found", "probabilities", "search"]

TRAINING: FitOptions = {"learning_rate": 5e-4, "epochs": 10, "batch_size": 32, "clip_norm": 5.0, "scheduler": "cosine"}
"""The training options of all commands of this method."""


class Found:
    """The course of a search.

    Attributes
    ----------
    fit : Fit
        Of the weights.
    losses : list of float
        Of every step of the architecture parameters.
    entropies : list of float
        Mean entropy, in nats, of the sampled weights of every such step.
    gradient_norms : dict of str to list of float
        By dimension, of every such step.
    before : dict of str to Tensor
        Probabilities of the choices at the start.
    """

    def __init__(self, net: Supernet) -> None:
        self.fit = Fit()
        self.losses: list[float] = []
        self.entropies: list[float] = []
        self.gradient_norms: dict[str, list[float]] = {name: [] for name in net.state.choices}
        self.before = probabilities(net)


def probabilities(net: Supernet) -> dict[str, Tensor]:
    """Return the softmax of the parameters of every dimension."""
    return {name: net.state.alpha(name).detach().softmax(0).cpu() for name in net.state.choices}


def search(
    net: Supernet,
    training: Samples,
    held_out: Samples | None,
    *,
    sampler: Sampler | None = None,
    arch_learning_rate: float = 3e-4,
    arch_weight_decay: float = 1e-3,
    seed: int = 0,
    **options: Unpack[FitOptions],
) -> Found:
    """Train weights and architecture parameters of a super-network in turn.

    Parameters
    ----------
    net : Supernet
        Trained in place.
    training, held_out : sequence of samples
        For the weights, and for the architecture parameters; None takes the batches of the weights.
    sampler : Sampler, optional
        From the parameters to the weights of the choices; :class:`DrNAS` by default.
    arch_learning_rate, arch_weight_decay : float
        Of Adam on the architecture parameters.
    seed : int, default: 0
        Of everything random.
    **options
        As for :func:`weightsmith.core.training.fit`.

    Returns
    -------
    Found
        Losses, entropies and gradient norms.
    """
    options = cast(FitOptions, {**TRAINING, **options})
    steps = batch_count(len(cast(Sized, training)), options)
    loss = Bilevel(net, sampler or DrNAS(), held_out, (arch_learning_rate, arch_weight_decay), seed, steps, options)
    loss.found.fit = fit(net.model, training, loss=loss, seed=seed, **options)
    return loss.found


class Bilevel:
    """The loss of the weights, before which the architecture parameters make a step of their own."""

    def __init__(
        self,
        net: Supernet,
        sampler: Sampler,
        held_out: Samples | None,
        adam: tuple[float, float],
        seed: int,
        steps: int,
        options: FitOptions,
    ) -> None:
        self.net, self.sampler, self.found = net, sampler, Found(net)
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.optimizer = torch.optim.Adam(net.arch_parameters(), lr=adam[0], betas=(0.5, 0.999), weight_decay=adam[1])
        self.calls, self.steps, self.epochs = 0, steps, options.get("epochs", 1)
        size = options.get("batch_size", 32)
        self.batches = None if held_out is None else _endless(net.model, held_out, size, self.generator)

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of the weights."""
        plain = plain_model(model)
        progress = min(self.calls // self.steps / max(self.epochs - 1, 1), 1.0)
        self.calls += 1
        if self.sampler.learns:
            held_out = batch if self.batches is None else next(self.batches)
            self.arch_step(plain, held_out, progress)
        self.net.state.sample(self.sampler, progress, self.generator, learn=False)
        return default_loss(model, batch)

    def arch_step(self, model: nn.Module, batch: Any, progress: float) -> None:
        """One step of the architecture parameters; the weights, and their gradients, do not change."""
        state = self.net.state
        state.sample(self.sampler, progress, self.generator)
        entropy = [-(w * w.clamp(min=1e-12).log()).sum().item() for w in state.weights.values()]
        loss = default_loss(model, batch)
        if not bool(loss.isfinite()):
            raise NonFiniteError(
                f"the loss of the choices at step {len(self.found.losses) + 1}",
                found=loss.item(),
                do="Lower the learning rate, or check the samples for the choices.",
            )
        gradients = torch.autograd.grad(loss, list(state.alphas), allow_unused=True)
        for name, alpha, gradient in zip(state.choices, state.alphas, gradients, strict=True):
            alpha.grad = _mean_of_processes(torch.zeros_like(alpha) if gradient is None else gradient)
            self.found.gradient_norms[name].append(alpha.grad.norm().item())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.found.losses.append(loss.item())
        self.found.entropies.append(sum(entropy) / len(entropy))


def _mean_of_processes(gradient: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gradient = gradient.clone()
        torch.distributed.all_reduce(gradient)
        gradient = gradient / torch.distributed.get_world_size()
    return gradient


def _endless(model: nn.Module, samples: Samples, size: int, generator: torch.Generator) -> Iterator[Any]:
    """Batches in a new order in every pass; each process of several has its own."""
    rank, world = process_rank(), process_count()
    order = torch.Generator().manual_seed(generator.initial_seed())
    count = len(cast(Sized, samples))
    while True:
        shuffled = torch.randperm(count, generator=order).tolist()[rank::world] or [rank % count]
        for start in range(0, len(shuffled), size):
            rows = read(samples, shuffled[start : start + size])
            yield to_model(batched(rows, size, pad_token_id=pad_token_id(model))[0], model)
