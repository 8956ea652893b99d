r"""TangleNAS: one architecture from a network that holds all of a space, for the cost of training it about twice.

Sukthanker, Krishnakumar, Safari, Hutter, "Weight-Entanglement Meets Gradient-Based Neural Architecture Search", AutoML
2024, arXiv 2312.10440. Smaller choices are slices of the largest tensor. Their weights :math:`a`, drawn anew in every
forward pass, mix the slices and not the outputs:

.. math:: y = f\Bigl(x;\ \sum_i a_i \, \mathrm{pad}(\mathrm{slice}_i(W))\Bigr), \qquad a \sim Dir(elu(\alpha) + 1)

Each step updates :math:`\alpha` on a batch of held-out samples and then the weights on a batch of training samples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, Literal, Unpack, cast

import torch
from torch import nn
from torch.utils.data import Subset

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Samples, batched, pad_token_id, take, to_model, without_labels
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, UnsupportedModelError
from weightsmith.core.models import evaluation_mode, has_batchnorm, recalibrate_batchnorm
from weightsmith.core.results import Result, record
from weightsmith.core.training import (
    FitOptions,
    draw_seed,
    fit,
    mean_loss,
    refuse_adapters,
    seed_of,
    training_method,
)
from weightsmith.search._tanglenas.loop import TRAINING, Found, probabilities, search
from weightsmith.search._tanglenas.samplers import DARTS, GDAS, SPOS, DrNAS
from weightsmith.search._tanglenas.space import default_choices, read_choices
from weightsmith.search._tanglenas.supernet import Supernet
from weightsmith.search._tanglenas.superposition import Architecture

__all__ = ["draw", "net_loss", "random_search", "spos", "tanglenas"]

SamplerName = Literal["drnas", "darts", "gdas"]
SAMPLERS: dict[SamplerName, type[DrNAS] | type[DARTS] | type[GDAS]] = {"drnas": DrNAS, "darts": DARTS, "gdas": GDAS}
UNMOVED = 0.01
"""Probabilities of choices that moved less say nothing about the architecture."""
STATISTICS = 16
"""Batches that batch normalization is estimated on."""


@training_method(**TRAINING)
def tanglenas(
    model: nn.Module,
    training: Samples,
    *,
    space: Path | None = None,
    sampler: SamplerName = "drnas",
    train_portion: float = 0.5,
    arch_learning_rate: float = 3e-4,
    arch_weight_decay: float = 1e-3,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Search for the sizes of a network by gradients, and make the model the network that was found.

    The model is the largest network of the space. Its weights and the probabilities of all choices are trained
    together. The network that is found keeps its slices of the trained weights; fine-tune it, or train its
    architecture from scratch.

    Parameters
    ----------
    model : nn.Module
        The largest network. Changed in place: afterwards it is the network that was found, and so is its configuration.
    training : sequence of samples
        Samples with labels.
    space : Path, optional
        YAML file of the choices: a mapping from names to ascending values, of which the last is the model's own. Names
        are fields of the configuration (``hidden_size``, ``num_attention_heads`` or ``num_key_value_heads``,
        ``intermediate_size`` or ``mlp_ratio``, ``num_hidden_layers``) or, for other networks, ``PATH.out_channels``,
        ``PATH.out_features``, ``PATH.kernel_size`` and ``PATH.depth``. Without, a half and the whole of the widths
        inside blocks, the heads and the depth.
    sampler : {"drnas", "darts", "gdas"}, default: "drnas"
        How the weights of the choices follow from their parameters: drawn from a Dirichlet distribution, the sparsemax
        itself, or one choice drawn with Gumbel noise.
    train_portion : float, default: 0.5
        Share of the samples, in (0, 1], for the weights; the others are for the choices. With 1 the same samples serve
        both.
    arch_learning_rate : float, default: 3e-4
        Learning rate of the architecture parameters (Adam with betas 0.5 and 0.999).
    arch_weight_decay : float, default: 1e-3
        Their weight decay, which pulls all choices towards equal probabilities.
    generator : torch.Generator, optional
        Divides the samples, and draws the weights of the choices and the order of the samples.
    **options
        Training options of the weights, see :class:`weightsmith.core.training.FitOptions`. The optimizer is AdamW.

    Returns
    -------
    Result
        Per dimension the ``choice``, its ``probability``, the ``probability_change`` and the mean
        ``gradient_norm`` of the parameters; in total parameters before and after and the loss of the network that was
        found on the samples for the choices.

    Raises
    ------
    CalibrationError
        If there are too few samples.
    HyperparameterError
        If an option is out of range or the space is impossible; the message lists what is possible.
    NonFiniteError
        If the outputs of the model are NaN or infinite.
    UnsupportedModelError
        If a sub-network of the model is not a slice of it.

    Warns
    -----
    UserWarning
        If ``train_portion`` is 1.

    References
    ----------
    Sukthanker, Krishnakumar, Safari, Hutter, arXiv 2312.10440.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> samples = [(torch.eye(2)[n % 2], torch.tensor(n % 2)) for n in range(64)]
    >>> result = tanglenas(model, samples)
    >>> [row["layer"] for row in result.layers], result.totals["architectures"]
    (['0.out_features'], 2)
    """
    _check(train_portion, arch_learning_rate=arch_learning_rate, arch_weight_decay=arch_weight_decay)
    check_choice("sampler", sampler, SamplerName)
    hyper: dict[str, Any] = {
        "space": space and str(space),
        "sampler": sampler,
        "train_portion": train_portion,
        "arch_learning_rate": arch_learning_rate,
        "arch_weight_decay": arch_weight_decay,
    }
    seed = draw_seed(generator)
    with record("tanglenas", seed=seed_of(generator), **hyper, **options) as result:
        net, own, held_out = _prepare(model, training, space, train_portion, seed, result)
        try:
            found = search(
                net,
                own,
                held_out,
                sampler=SAMPLERS[sampler](),
                arch_learning_rate=arch_learning_rate,
                arch_weight_decay=arch_weight_decay,
                seed=seed,
                **options,
            )
            architecture = net.state.argmax()
            _describe(result, net, found)
            net.extract(architecture)
        finally:
            net.close()
        _finish(result, model, own, held_out)
    return result


@training_method(**TRAINING)
def spos(
    model: nn.Module,
    training: Samples,
    *,
    space: Path | None = None,
    train_portion: float = 0.5,
    candidates: int = 100,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Train all networks of a space by drawing one per step, then compare some: the baseline in two stages.

    Parameters
    ----------
    model : nn.Module
        The largest network. Changed in place: afterwards it is the network that was found.
    training : sequence of samples
        Samples with labels.
    space : Path, optional
        As for :func:`tanglenas`.
    train_portion : float, default: 0.5
        Share of the samples, in (0, 1), for the weights; the others are for the comparison.
    candidates : int, default: 100
        Architectures that are drawn and compared with the weights they inherit.
    generator : torch.Generator, optional
        Divides the samples, and draws architectures and the order of the samples.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`.

    Returns
    -------
    Result
        Per dimension the ``choice``; in total as :func:`tanglenas`.

    Raises
    ------
    CalibrationError, HyperparameterError, NonFiniteError, UnsupportedModelError
        As :func:`tanglenas`.

    References
    ----------
    Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", ECCV 2020, arXiv 1904.00420.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> samples = [(torch.eye(2)[n % 2], torch.tensor(n % 2)) for n in range(64)]
    >>> spos(model, samples, candidates=4).totals["candidates"]
    2
    """
    _check(train_portion, candidates=candidates, most=0.999)
    hyper = {"space": space and str(space), "train_portion": train_portion, "candidates": candidates}
    seed = draw_seed(generator)
    with record("spos", seed=seed_of(generator), **hyper, **options) as result:
        net, own, held_out = _prepare(model, training, space, train_portion, seed, result)
        try:
            before = _sums(net)
            found = search(net, own, held_out, sampler=SPOS(), seed=seed, **options)
            if still := [name for name, value in _sums(net).items() if value == before[name]]:
                result.notes.append(f"Not part of any network that was drawn, and unchanged: {', '.join(still)}.")
            batches, compared = _batches(model, held_out, options["batch_size"]), draw(net, candidates, seed)
            statistics = _batches(model, own, options["batch_size"])[:STATISTICS]
            losses = [net_loss(net, architecture, batches, statistics) for architecture in compared]
            architecture = compared[min(range(len(losses)), key=losses.__getitem__)]
            result.curves |= {"loss: weights": found.fit.losses, "loss: candidates": sorted(losses)}
            _name(result, net, architecture, candidates=len(compared))
            net.extract(architecture)
        finally:
            net.close()
        _finish(result, model, own, held_out)
    return result


@training_method(**TRAINING)
def random_search(
    model: nn.Module,
    training: Samples,
    *,
    space: Path | None = None,
    train_portion: float = 0.5,
    candidates: int = 5,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Train some architectures, drawn at random, for a share of the steps each, and keep the best: the baseline.

    Parameters
    ----------
    model : nn.Module
        The largest network. Changed in place: afterwards it is the network that was found.
    training : sequence of samples
        Samples with labels.
    space : Path, optional
        As for :func:`tanglenas`.
    train_portion : float, default: 0.5
        Share of the samples, in (0, 1), to train on; the others are for the comparison.
    candidates : int, default: 5
        Architectures. Each starts from its slices of the model's weights and is trained on an equal share of the
        samples, so that all together take as many steps as one search.
    generator : torch.Generator, optional
        Divides the samples, and draws architectures and the order of the samples.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`.

    Returns
    -------
    Result
        Per dimension the ``choice``; in total as :func:`tanglenas`.

    Raises
    ------
    CalibrationError, HyperparameterError, NonFiniteError, UnsupportedModelError
        As :func:`tanglenas`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> samples = [(torch.eye(2)[n % 2], torch.tensor(n % 2)) for n in range(64)]
    >>> random_search(model, samples, candidates=2).totals["candidates"]
    2
    """
    _check(train_portion, candidates=candidates, most=0.999)
    hyper = {"space": space and str(space), "train_portion": train_portion, "candidates": candidates}
    seed = draw_seed(generator)
    with record("random-search", seed=seed_of(generator), **hyper, **options) as result:
        net, own, held_out = _prepare(model, training, space, train_portion, seed, result)
        try:
            batches, compared = _batches(model, held_out, options["batch_size"]), draw(net, candidates, seed)
            best, best_loss, losses = None, math.inf, []
            for number, architecture in enumerate(compared):
                small = net.extracted(architecture)
                share = [*range(number, len(cast(Sized, own)), len(compared))]
                if not share:
                    raise CalibrationError("samples per candidate", found=0, do="Lower candidates.")
                run = fit(small, Subset(cast(Any, own), share), seed=seed, **options)
                losses.append(_mean_loss(small, batches))
                result.curves[f"loss: candidate {number + 1}"] = run.losses
                if best is None or losses[-1] < best_loss:
                    best, best_loss, chosen = small, losses[-1], architecture
            _name(result, net, chosen, candidates=len(compared))
            assert best is not None
            net.close()
            net.become(best)
        finally:
            net.close()
        _finish(result, model, own, held_out)
    return result


# --- what the commands share


def _check(train_portion: float, most: float = 1.0, **numbers: float) -> None:
    if not 0 < train_portion <= most:
        raise HyperparameterError(
            "train_portion", found=train_portion, expected="a share in (0, 1]" if most == 1 else "a share in (0, 1)"
        )
    for name, value in numbers.items():
        lowest = 1 if name == "candidates" else 0
        if not (math.isfinite(value) and value >= lowest):
            raise HyperparameterError(name, found=value, expected=f"a number >= {lowest}")


def _prepare(
    model: nn.Module, training: Samples, space: Path | None, portion: float, seed: int, result: Result
) -> tuple[Supernet, Samples, Samples | None]:
    """The super-network, the samples for its weights, and those for the choices."""
    refuse_adapters(model)
    count = len(cast(Sized, training))
    cut = round(portion * count)
    if count < 2 or cut == 0 or (portion < 1 and cut == count):
        found = f"{cut} for the weights and {count - cut} for the choices"
        raise CalibrationError("samples", found=found, expected="at least one for each", do="Give more samples.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    own, held_out = Subset(cast(Any, training), order[:cut]), Subset(cast(Any, training), order[cut:])
    if portion == 1:
        note = "The choices were trained on the samples of the weights (train_portion 1): they prefer large networks."
        warnings.warn(note, stacklevel=4)
        result.notes.append(note)
    net = _open(model, space, _inputs(model, training), seed, result)
    result.totals["architectures"] = net.space.architectures
    result.totals["parameters_before"] = sum(p.numel() for p in model.parameters())
    return net, cast(Samples, own), None if portion == 1 else cast(Samples, held_out)


def _inputs(model: nn.Module, training: Samples) -> Any:
    batch = batched(take(training, 0, 2), 2, pad_token_id=pad_token_id(model))[0]
    return to_model(without_labels(model, batch), model)


def _open(model: nn.Module, space: Path | None, batch: Any, seed: int, result: Result) -> Supernet:
    """The super-network of a file's space, or of the dimensions that are possible in the default one."""
    generator = torch.Generator().manual_seed(seed)
    if space is not None:
        return Supernet(model, read_choices(space), batch, generator=generator)
    choices = default_choices(model, batch)
    possible = {}
    for name, values in choices.items():
        try:
            Supernet(model, {name: values}, batch, generator=generator).close()
            possible[name] = values
        except (UnsupportedModelError, HyperparameterError) as error:
            result.notes.append(f"{name} was left out of the default space: {error}")
    if not possible:
        reasons = "; ".join(result.notes) or "no width that can be chosen"
        raise UnsupportedModelError("nothing can be searched", found=reasons, do="Give a space.")
    return Supernet(model, possible, batch, generator=generator)


def _sums(net: Supernet) -> dict[str, float]:
    """The sum of every weight, which tells whether it was trained."""
    names = {
        id(p): n.replace("parametrizations.", "").replace(".original", "") for n, p in net.model.named_parameters()
    }
    return {names[id(p)]: float(p.detach().double().sum()) for p in net.weight_parameters() if p.requires_grad}


def draw(net: Supernet, count: int, seed: int) -> list[Architecture]:
    """Return different architectures, drawn uniformly: as many as there are or fewer."""
    generator, drawn = torch.Generator().manual_seed(seed + 2), {}
    for _ in range(20 * count):
        architecture = net.state.random(generator)
        drawn[tuple(architecture.values())] = architecture
        if len(drawn) == min(count, net.space.architectures):
            break
    return list(drawn.values())


def _batches(model: nn.Module, samples: Samples | None, size: int) -> list[Any]:
    assert samples is not None
    return [to_model(batch, model) for batch in batched(take(samples), size, pad_token_id=pad_token_id(model))]


def _mean_loss(model: nn.Module, batches: Sequence[Any]) -> float:
    with evaluation_mode(model):
        loss = mean_loss(model, batches)
    if not math.isfinite(loss):
        raise NonFiniteError(
            "the loss of a network on the samples for the choices",
            found=loss,
            do="Check these samples for NaN, infinity and labels that are all -100.",
        )
    return loss


def net_loss(net: Supernet, architecture: Architecture, batches: Sequence[Any], statistics: Sequence[Any]) -> float:
    """Return the loss of one architecture with the weights it inherits; statistics of batch normalization are its own.

    Parameters
    ----------
    net : Supernet
        Not changed: running statistics are restored.
    architecture : dict of str to int
        What to measure.
    batches : sequence of batch
        Labeled batches to measure the loss on.
    statistics : sequence of batch
        Batches to estimate batch normalization on.
    """
    net.state.fix(architecture)
    if not has_batchnorm(net.model):
        return _mean_loss(net.model, batches)
    kept = {name: buffer.clone() for name, buffer in net.model.named_buffers()}
    try:
        recalibrate_batchnorm(net.model, [without_labels(net.model, batch) for batch in statistics])
        return _mean_loss(net.model, batches)
    finally:
        for name, buffer in net.model.named_buffers():
            buffer.copy_(kept[name])


def _describe(result: Result, net: Supernet, found: Found) -> None:
    """Write down the choices, and whether they mean something."""
    after, still = probabilities(net), []
    for name, value in net.state.argmax().items():
        moved = (after[name] - found.before[name]).abs().max().item()
        norms = found.gradient_norms[name]
        result.layer(
            name,
            choice=value,
            probability=after[name].max().item(),
            probability_change=moved,
            gradient_norm=sum(norms) / max(len(norms), 1),
        )
        if moved < UNMOVED:
            still.append(name)
    if still:
        result.notes.append(
            f"The probabilities of {', '.join(still)} moved by less than {UNMOVED}: their choice is close to chance. "
            "Train for more epochs, or raise arch_learning_rate."
        )
    result.curves |= {
        "loss: weights": found.fit.losses,
        "loss: choices": found.losses,
        "entropy of the choices": found.entropies,
    }


def _name(result: Result, net: Supernet, architecture: Architecture, **totals: Any) -> None:
    for name, value in architecture.items():
        result.layer(name, choice=value)
    result.totals |= totals


def _finish(result: Result, model: nn.Module, own: Samples, held_out: Samples | None) -> None:
    """Estimate batch normalization anew, and measure the network that was found."""
    size = result.hyper["batch_size"]
    if has_batchnorm(model):
        batches = _batches(model, own, size)[:STATISTICS]
        recalibrate_batchnorm(model, [without_labels(model, batch) for batch in batches])
    if held_out is not None:
        result.totals["validation_loss"] = _mean_loss(model, _batches(model, held_out, size))
    result.totals["parameters"] = sum(p.numel() for p in model.parameters())
