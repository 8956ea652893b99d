r"""Large models layer by layer: learn the chunks of one weight matrix, draw it anew, keep what lowers a loss.

A matrix is cut into chunks. An autoencoder and a diffusion model learn them given their place in it, so that a draw
for every place is a new matrix. Matrices are ranked by the signal-to-noise ratio of their singular values
(:func:`~weightsmith.analyze._shared.spectrum.signal_to_noise`), and only the first of each kind are drawn.

Soro, Andreis, Lee, Jeong, Chong, Hutter, Hwang: "Diffusion-Based Neural Network Weights Generation", ICLR 2025,
arXiv:2402.18153.

Legend: ``M`` checkpoints, ``K`` draws, ``O`` outputs, ``I`` inputs, ``N`` chunks of a matrix, ``P`` weights of a chunk.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.analyze import signal_to_noise, singular_values
from weightsmith.core.data import Batches, as_batches
from weightsmith.core.errors import (
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
)
from weightsmith.core.jobs import Backend, run_jobs
from weightsmith.core.models import VOCABULARY_HEADS, Layer, evaluation_mode, find_layers, unreached, writable
from weightsmith.core.processes import refuse_several_processes
from weightsmith.core.results import Result, record
from weightsmith.core.training import draw_seed, mean_loss, restored_on_error, seed_of
from weightsmith.predict._d2nwg.autoencoder import WeightVAE
from weightsmith.predict._d2nwg.conditions import OrderedEncoder
from weightsmith.predict._d2nwg.diffusion import WeightDiffusion
from weightsmith.predict._zoo import Slot, WeightZoo

__all__ = ["Draws", "d2nwg_layers", "draw_layer", "highest", "keep_best"]

PLACE_FEATURES = 64
"""Sines and cosines of a chunk's place."""


class Draws(NamedTuple):
    """A matrix drawn anew.

    Attributes
    ----------
    drawn_KOI : Tensor of shape (draws, out, in)
        The draws.
    decoded_OI : Tensor of shape (out, in)
        The first checkpoint's matrix, encoded and decoded: what is lost without drawing anything.
    error : float
        The autoencoder's squared error over the chunks' variance.
    """

    drawn_KOI: Float[Tensor, "draws out in"]
    decoded_OI: Float[Tensor, "out in"]
    error: float


def d2nwg_layers(
    model: nn.Module,
    calibration: Batches,
    *,
    share: float = 0.25,
    chunk: int = 256,
    candidates: int = 4,
    latent: int = 64,
    vae_steps: int = 1000,
    steps: int = 1000,
    batch_size: int = 64,
    sampler_steps: int = 50,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = VOCABULARY_HEADS,
    states: Sequence[Mapping[str, Tensor]] = (),
    evaluate: Callable[[nn.Module], float] | None = None,
    workers: int = 1,
    backend: Backend = "processes",
    generator: torch.Generator | None = None,
) -> Result:
    """Draw the weight matrices with the highest signal-to-noise ratio anew and keep those that lower the loss.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    calibration : sequence of batches
        What the loss is taken on, on the model's device: mappings with ``input_ids`` or ``labels``, or pairs of inputs
        and classes. The loss on these falls by choice; judge the model on others.
    share : float, default: 0.25
        Of the matrices of each kind, in (0, 1]; rounded up. A kind is a name without its numbers.
    chunk : int, default: 256
        Weights of a chunk. Matrices of no more weights stay as they are.
    candidates : int, default: 4
        Draws a matrix, the best of which may be kept.
    latent : int, default: 64
        Numbers that stand for a chunk.
    vae_steps, steps : int, default: 1000
        Training steps of the autoencoder and the diffusion model of a matrix.
    batch_size : int, default: 64
        Chunks a step.
    sampler_steps : int, default: 50
        In how many steps to draw.
    include, exclude : str or sequence of str
        Shell patterns on layer names; by default the layer over the vocabulary is left out.
    states : sequence of mapping of str to Tensor, default: ()
        More checkpoints of the architecture to learn from.
    evaluate : callable, optional
        In place of the loss on ``calibration``: what of the model is to fall.
    workers, backend
        Matrices learnt in processes of their own, see :func:`~weightsmith.core.jobs.run_jobs`.
    generator : torch.Generator, optional
        Of everything random.

    Returns
    -------
    Result
        Per layer: ``signal_to_noise``, ``reconstruction_error``, the loss ``before`` and ``after``, and ``kept``.

    Raises
    ------
    HyperparameterError
        If a number is out of range.
    CalibrationError
        If there are no batches, or not what a loss can be taken on.
    LayerNotFoundError
        If no matrix is larger than a chunk.
    NonFiniteError
        If weights hold NaN or infinity, or the loss does.
    ShapeError
        If a checkpoint lacks a matrix or has another shape.
    WeightsmithError
        If an autoencoder collapses; train it longer. On any error the model is as it was.

    References
    ----------
    Soro, Andreis, Lee, et al., arXiv 2402.18153; Hartford et al., arXiv 2406.06623.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> batch = (torch.randn(32, 16), torch.randint(4, (32,)))
    >>> result = d2nwg_layers(model, [batch], chunk=16, share=0.5, vae_steps=100, steps=20, candidates=2)
    >>> result.totals["loss_after"] <= result.totals["loss_before"]
    True
    """
    numbers = (chunk, candidates, latent, vae_steps, steps, batch_size, sampler_steps, workers)
    if not 0 < share <= 1 or min(numbers) < 1:
        raise HyperparameterError("share and counts", found=(share, *numbers), expected="0 < share <= 1, counts >= 1")
    refuse_several_processes("draws are chosen by the loss on a process's own batches", do="Run one process.")
    batches = as_batches(calibration)
    layers = [one for one in find_layers(model, include, exclude) if one.weight.numel() > chunk]
    if not layers:
        raise LayerNotFoundError("no matrix to draw", expected=f"more than {chunk} weights", do="Use a smaller chunk.")
    writable(layers)
    measure = evaluate or partial(mean_loss, batches=batches)
    own: dict[str, Any] = {
        "chunk": chunk,
        "candidates": candidates,
        "latent": latent,
        "vae_steps": vae_steps,
        "steps": steps,
        "batch_size": batch_size,
        "sampler_steps": sampler_steps,
    }
    which: dict[str, Any] = {"share": share, "include": include, "exclude": exclude}
    with (
        record("d2nwg-layers", seed=seed_of(generator), **which, **own) as result,
        evaluation_mode(model),
        restored_on_error(model),
    ):
        result.notes += unreached(model, find_layers(model))
        chosen = highest(layers, share)
        learn = partial(_learn, **own)
        jobs = [(_matrices(layer, states), draw_seed(generator) + number) for number, layer in enumerate(chosen)]
        before = loss = _finite(measure, model)
        for (layer, ratio), draws in zip(
            chosen.items(), run_jobs(learn, jobs, workers=workers, backend=backend), strict=True
        ):
            after = keep_best(model, layer, draws.drawn_KOI, measure, loss)
            result.layer(
                layer.name,
                signal_to_noise=ratio,
                reconstruction_error=draws.error,
                before=loss,
                after=after,
                kept=after < loss,
            )
            loss = after
        if unchosen := [layer.name for layer in layers if layer not in chosen]:
            result.notes.append(f"Not among the share that is drawn: {', '.join(unchosen)}.")
        kept = sum(row["kept"] for row in result.layers)
        result.totals = {"layers": len(chosen), "kept": kept, "loss_before": before, "loss_after": loss}
        result.notes.append("The loss is the one that draws were chosen by: judge the model on other data.")
    return result


def draw_layer(
    weights_MOI: Float[Tensor, "M out in"],
    *,
    chunk: int = 256,
    candidates: int = 4,
    latent: int = 64,
    vae_steps: int = 1000,
    steps: int = 1000,
    batch_size: int = 64,
    sampler_steps: int = 50,
    seed: int = 0,
) -> Draws:
    """Learn the chunks of a matrix, of one or more checkpoints, and draw it anew.

    Parameters
    ----------
    weights_MOI : Tensor of shape (checkpoints, out, in)
        The matrix in each checkpoint, of more than ``chunk`` weights.
    chunk, candidates, latent, vae_steps, steps, batch_size, sampler_steps
        As for :func:`d2nwg_layers`.
    seed : int, default: 0
        Of everything random.

    Examples
    --------
    >>> drawn = draw_layer(torch.randn(1, 8, 8), chunk=8, latent=4, vae_steps=100, steps=10, candidates=3).drawn_KOI
    >>> drawn.shape
    torch.Size([3, 8, 8])
    """
    checkpoints, *shape = weights_MOI.shape
    size = math.prod(shape)
    flat_MP = functional.pad(weights_MOI.detach().cpu().float().flatten(1), (0, -size % chunk))
    rows_MNP = flat_MP.unflatten(1, (-1, chunk))
    places_NCSF = _places(rows_MNP.shape[1])
    zoo = WeightZoo(
        rows_MNP.flatten(0, 1).numpy(),
        [Slot("chunk", (chunk,), "float32", 0)],
        support_NCSF=places_NCSF.repeat(checkpoints, 1, 1, 1).numpy(),
    )

    def whole(rows: Tensor) -> Tensor:
        return rows.reshape(-1, flat_MP.shape[1])[:, :size].unflatten(1, shape)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        own = WeightDiffusion(zoo, OrderedEncoder(PLACE_FEATURES, 1), vae=WeightVAE(chunk, latent=latent), shots=1)
        own.fit(vae_steps=vae_steps, steps=steps, batch_size=batch_size, average=0.999, generator=generator)
        drawn = [own.sample_rows(places_NCSF, steps=sampler_steps, generator=generator) for _ in range(candidates)]
        decoded_NP = own.decoded(torch.arange(rows_MNP.shape[1]))
    return Draws(whole(torch.stack(drawn)), whole(decoded_NP)[0], own.reconstruction_error)


def highest(layers: Sequence[Layer], share: float) -> dict[Layer, float]:
    """Return the share of each kind with the highest signal-to-noise ratio, and the ratios, highest first.

    Examples
    --------
    >>> [layer.name for layer in highest(find_layers(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), 0.25)]
    ['0']
    """
    kinds: dict[str, list[tuple[float, Layer]]] = {}
    for layer in layers:
        weight_OI = layer.weight_OI
        if not bool(weight_OI.isfinite().all()):
            raise NonFiniteError(f"weight of layer {layer.name!r} holds NaN or infinity", do="Repair the checkpoint.")
        ratio = signal_to_noise(singular_values(weight_OI[None]), *weight_OI.shape).item()
        kinds.setdefault(re.sub(r"\d+", "*", layer.name), []).append((ratio, layer))
    chosen = []
    for alike in kinds.values():
        alike.sort(key=lambda pair: -pair[0])
        chosen += alike[: math.ceil(share * len(alike))]
    return {layer: ratio for ratio, layer in sorted(chosen, key=lambda pair: -pair[0])}


@torch.no_grad()
def keep_best(
    model: nn.Module,
    layer: Layer,
    candidates_KOI: Float[Tensor, "K out in"],
    measure: Callable[[nn.Module], float],
    loss: float,
) -> float:
    """Give a layer the candidate with the lowest loss if that is below ``loss``, else its own weights, bit for bit.

    Returns
    -------
    float
        The loss of what was kept.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False))
    >>> drawn = torch.tensor([[[3.0]], [[1.0]]])
    >>> keep_best(model, find_layers(model)[0], drawn, lambda model: model[0].weight.item(), 5.0)
    1.0
    """
    best = layer.weight.detach().clone()
    for candidate_OI in candidates_KOI:
        layer.write(candidate_OI)
        found = float(measure(model))
        if found < loss:
            best, loss = layer.weight.detach().clone(), found
    layer.weight.detach().copy_(best)
    return loss


def _learn(job: tuple[Tensor, int], **hyper: int) -> Draws:
    weights_MOI, seed = job
    return draw_layer(weights_MOI, seed=seed, **hyper)


def _matrices(layer: Layer, states: Sequence[Mapping[str, Tensor]]) -> Float[Tensor, "M out in"]:
    key, found = f"{layer.name}.weight".lstrip("."), [layer.weight_OI.float().cpu()]
    for number, state in enumerate(states):
        if key not in state or state[key].shape != layer.weight.shape:
            there = tuple(state[key].shape) if key in state else "none"
            raise ShapeError(f"{key} of checkpoint {number}", found=there, expected=tuple(layer.weight.shape))
        found.append(layer.matrix(state[key]).float().cpu())
    return torch.stack(found)


def _places(count: int) -> Float[Tensor, "N 1 1 F"]:
    from diffusers.models.embeddings import get_timestep_embedding

    features: Tensor = get_timestep_embedding(torch.arange(count), PLACE_FEATURES)
    return features[:, None, None]


def _finite(measure: Callable[[nn.Module], float], model: nn.Module) -> float:
    with torch.no_grad():
        loss = float(measure(model))
    if not math.isfinite(loss):
        raise NonFiniteError("the model's loss", found=loss, do="Check its weights and the batches.")
    return loss
