"""Zoos over load and temperature: networks trained cell by cell, their measures, and the map of their phases.

A zoo is a folder. ``zoo.json`` names its axes; each cell has a folder with one ``seed-N.safetensors`` and
``seed-N.metrics.json`` per network, which :meth:`weightsmith.predict.WeightZoo.from_folder` opens, and ``cell.json``
with its measures. ``phases.parquet`` is the table of all cells, ``phases.svg`` their map.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias, Unpack

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from weightsmith.analyze._phases.classify import PhaseName, classify_phase
from weightsmith.analyze._phases.metrics import LandscapeMetrics, landscape_metrics
from weightsmith.analyze._phases.picture import phase_map
from weightsmith.core.data import Samples, samples_digest, take
from weightsmith.core.errors import CalibrationError, CheckpointError, HyperparameterError, ShapeError
from weightsmith.core.io import atomic_output, read_json, write_file
from weightsmith.core.jobs import Backend, run_jobs
from weightsmith.core.progress import track
from weightsmith.core.training import FitOptions, Task, train_many

__all__ = ["PhaseZoo", "train_phase_zoo"]

Axis: TypeAlias = Mapping[str, Sequence[Any]]
"""One name and its values."""

Train: TypeAlias = Callable[..., None]
"""``train(network, training, seed=..., batch_size=...)`` trains a network in place, at a temperature."""

MEASURES = (
    "train_loss",
    "train_accuracy",
    "test_accuracy",
    "gap",
    "mode_connectivity",
    "cka",
    "distance",
    "hessian_trace",
    "top_eigenvalue",
    "classes",
    "language_model",
    "diverged",
)
"""Columns of the table of cells."""


@dataclass(frozen=True)
class PhaseZoo:
    """A zoo of networks over load and temperature, with the measures of every cell.

    Attributes
    ----------
    folder : Path
        Where it lies.
    load, temperature : str
        Names of the axes.
    cells : list of dict
        For each cell the values on both axes, and its measures.
    """

    folder: Path
    load: str
    temperature: str
    cells: list[dict[str, Any]]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> PhaseZoo:
        """Open a zoo; cells that are not finished are left out.

        Raises
        ------
        CheckpointError
            If there is none, or it cannot be read.
        """
        folder = Path(folder)
        if not (folder / "zoo.json").is_file():
            raise CheckpointError(f"no zoo of phases in {folder}", expected="zoo.json and folders of cells")
        about = read_json(folder / "zoo.json")
        try:
            ((load, loads),), ((temperature, temperatures),) = about["load"].items(), about["temperature"].items()
        except (KeyError, ValueError, AttributeError) as error:
            raise CheckpointError(f"cannot read {folder / 'zoo.json'}", found=error) from error
        places = [{load: a, temperature: b} for a, b in product(loads, temperatures)]
        found = [(place, folder / _name(place) / "cell.json") for place in places]
        return cls(folder, load, temperature, [{**place, **read_json(f)} for place, f in found if f.is_file()])

    def metrics(self, cell: Mapping[str, Any]) -> LandscapeMetrics:
        """Return the measures of a cell, without those of each network and pair."""
        return LandscapeMetrics(**{name: _number(cell[name]) for name in MEASURES if name != "gap"})

    def phases(self, **taus: Any) -> list[PhaseName]:
        """Return the phase of every cell; the options are those of :func:`classify_phase`.

        For language models the lowest training loss of all cells is ``best_loss``, if none is given.
        """
        metrics = [self.metrics(cell) for cell in self.cells]
        if "best_loss" not in taus and any(each.language_model for each in metrics):
            taus["best_loss"] = min(each.train_loss for each in metrics if not each.diverged)
        return [classify_phase(each, **taus) for each in metrics]

    def states(self, **cell: Any) -> list[dict[str, Tensor]]:
        """Return the weights of the networks of a cell: ``zoo.states(width=8, batch_size=64)``.

        Raises
        ------
        CheckpointError
            If there is no such cell.
        """
        files = sorted((self.folder / _name(cell)).glob("seed-*.safetensors"), key=lambda f: int(f.stem[5:]))
        if not files:
            names = [_name({key: each[key] for key in (self.load, self.temperature)}) for each in self.cells]
            raise CheckpointError(f"no cell {_name(cell)} in {self.folder}", expected=f"one of {names[:5]}")
        return [load_file(file) for file in files]

    def table(self, **taus: Any) -> Any:
        """Return all cells as a pandas table: axes, measures, phase."""
        import pandas

        return pandas.DataFrame(
            [{**cell, "phase": phase} for cell, phase in zip(self.cells, self.phases(**taus), strict=True)]
        )

    def picture(self, own: Mapping[str, float] | None = None, **taus: Any) -> str:
        """Return the map of the phases as an SVG picture, with a mark at the place of a network of the user's own.

        Parameters
        ----------
        own : mapping of str to float, optional
            Its values on the two axes; they may lie between those of the cells.
        **taus
            Those of :func:`classify_phase`.
        """
        cells = [(cell[self.load], cell[self.temperature]) for cell in self.cells]
        mark = None if own is None else (own[self.load], own[self.temperature])
        return phase_map(cells, self.phases(**taus), load=self.load, temperature=self.temperature, own=mark)

    def nearest(self, metrics: LandscapeMetrics) -> dict[str, Any]:
        """Return the cell whose measures are nearest to those of a network of the user's own.

        Compared are the logarithm of the training loss, the mode connectivity and the similarity of the outputs, each
        in units of its spread over the zoo.
        """
        usable = [cell for cell in self.cells if not cell["diverged"]]
        if not usable:
            raise CalibrationError(f"the zoo in {self.folder}", found="no cell that is trained", expected="one")
        points = torch.tensor([_point(self.metrics(cell)) for cell in usable], dtype=torch.float64)
        spread = points.std(0, correction=0).clamp(min=1e-9)
        apart = ((points - torch.tensor(_point(metrics), dtype=torch.float64)) / spread).square().sum(1)
        return usable[int(apart.argmin())]


def train_phase_zoo(
    build: Callable[..., nn.Module],
    training: Samples,
    test: Samples,
    folder: str | os.PathLike[str],
    *,
    load: Axis,
    temperature: Axis,
    seeds: int = 3,
    train: Train | None = None,
    train_epochs: int = 40,
    train_learning_rate: float = 0.05,
    train_batch_size: int = 32,
    train_momentum: float = 0.9,
    train_weight_decay: float = 5e-4,
    hessian_samples: int = 640,
    probes: int = 100,
    seed: int = 0,
    workers: int = 1,
    backend: Backend = "processes",
    **options: Unpack[FitOptions],
) -> PhaseZoo:
    """Train networks over a grid of load and temperature, several seeds per cell, and measure every cell.

    All seeds of a cell are trained at once, and with them all learning rates of a column, by momentum with a one-cycle
    schedule. Cells that are there already are not trained again; those returned are the ones asked for.

    Parameters
    ----------
    build : callable
        ``build(width=8)`` makes a network of a load; its random weights come from torch's global generator.
    training, test : Samples
        Pairs (input, class).
    folder : path-like
        Where the zoo is or will be.
    load : mapping of one str to a sequence
        The argument of ``build`` and its values: ``{"width": [2, 8, 32]}``.
    temperature : mapping of one str to a sequence
        ``{"batch_size": [...]}`` or ``{"learning_rate": [...]}``; with ``train`` any argument of it.
    seeds : int, default: 3
        Networks per cell, at least 2.
    train : callable, optional
        ``train(network, training, seed=0, batch_size=8)`` trains one network in place, for trainers and networks that
        cannot be trained at once, such as those with batch normalization.
    train_epochs, train_learning_rate, train_batch_size, train_momentum, train_weight_decay
        Of the training, where the temperature does not say: 40 passes, highest rate 0.05, batches of 32, momentum 0.9
        and weight decay 5e-4. The last batch of an epoch is left out if it is not full.
    hessian_samples, probes
        As for :func:`landscape_metrics`.
    seed : int, default: 0
        Added to those of the networks.
    workers, backend
        Cells are trained in several processes, see :func:`~weightsmith.core.jobs.run_jobs`.
    **options
        Those of the curves, see :func:`train_curve`.

    Raises
    ------
    CalibrationError
        If a batch is larger than the training data.
    CheckpointError
        If the folder holds another zoo: of other data, networks or options.
    HyperparameterError
        If an axis or a count is out of range.
    UnsupportedModelError
        If networks have batch normalization and there is no ``train``.

    Examples
    --------
    >>> import tempfile
    >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    >>> data = [(row, int(row[0] > 0)) for row in x]
    >>> def build(width):
    ...     return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))
    >>> grid = {"load": {"width": [2, 8]}, "temperature": {"batch_size": [8, 32]}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     zoo = train_phase_zoo(build, data, data, folder, **grid, train_epochs=5, epochs=2, batch_size=32, probes=2)
    ...     len(zoo.phases()), len(zoo.states(width=8, batch_size=32))
    (4, 3)
    """
    name, values = _axis("load", load)
    knob, degrees = _axis("temperature", temperature)
    if train is None and knob not in ("batch_size", "learning_rate"):
        raise HyperparameterError(
            "temperature", found=knob, expected="batch_size or learning_rate, or a train function"
        )
    for what, value, least in (("seeds", seeds, 2), ("train_epochs", train_epochs, 1)):
        if value < least:
            raise HyperparameterError(what, found=value, expected=f">= {least}")
    sizes = degrees if knob == "batch_size" else [train_batch_size]
    if train is None and not all(0 < size <= len(training) for size in sizes):
        raise CalibrationError("batch sizes", found=list(sizes), expected=f"up to the {len(training)} samples")
    folder = Path(folder)
    about = {
        "load": {name: list(values)},
        "temperature": {knob: list(degrees)},
        "seeds": seeds,
        "seed": seed,
        "train_epochs": train_epochs,
        "train_learning_rate": train_learning_rate,
        "train_batch_size": train_batch_size,
        "train_momentum": train_momentum,
        "train_weight_decay": train_weight_decay,
        "hessian_samples": hessian_samples,
        "probes": probes,
        "options": dict(options),
        "train": None if train is None else getattr(train, "__qualname__", type(train).__qualname__),
        "training": samples_digest(training),
        "test": samples_digest(test),
    }
    recipe = _Recipe(build, training, test, folder, name, knob, about, train, dict(options))
    _begin(folder, {**about, "networks": {_name({name: value}): recipe.shapes(value) for value in values}})
    # all learning rates of a load are one job, each batch size is one of its own
    groups = [degrees] if knob == "learning_rate" and train is None else [[degree] for degree in degrees]
    jobs = [
        (value, [degree for degree in group if not (folder / _name({name: value, knob: degree})).exists()])
        for value in values
        for group in groups
    ]
    waiting = [job for job in jobs if job[1]]
    for _ in track(run_jobs(recipe, waiting, workers=workers, backend=backend), "cells", total=len(waiting)):
        pass
    zoo = PhaseZoo.open(folder)
    zoo.table().to_parquet(folder / "phases.parquet")
    write_file(folder / "phases.svg", zoo.picture())
    return replace(zoo, cells=[cell for cell in zoo.cells if cell[name] in values and cell[knob] in degrees])


@dataclass(frozen=True)
class _Recipe:
    """Trains and measures cells of one load, and writes their folders."""

    build: Callable[..., nn.Module]
    training: Samples
    test: Samples
    folder: Path
    load: str
    temperature: str
    about: Mapping[str, Any]
    train: Train | None
    options: Mapping[str, Any]

    def __call__(self, job: tuple[Any, Sequence[Any]]) -> None:
        value, degrees = job
        states = self._at_once(value, degrees) if self.train is None else self._one_by_one(value, degrees)
        count = self.about["seeds"]
        for place, degree in enumerate(degrees):
            self._write({self.load: value, self.temperature: degree}, states[place * count : (place + 1) * count])

    def _at_once(self, value: Any, degrees: Sequence[Any]) -> list[dict[str, Tensor]]:
        about, count = self.about, self.about["seeds"]
        by_rate = self.temperature == "learning_rate"
        size = about["train_batch_size"] if by_rate else degrees[0]
        rates = torch.tensor(degrees if by_rate else [about["train_learning_rate"]]).repeat_interleave(count)
        members = len(rates)
        inputs, labels = (torch.stack([torch.as_tensor(each) for each in part]) for part in _pairs(self.training))
        tasks = Task(inputs.expand(members, *inputs.shape), labels.expand(members, -1))
        draws = [torch.Generator().manual_seed(about["seed"] + number) for number in range(count)]
        order = []
        for _ in range(about["train_epochs"]):
            rows = torch.stack([torch.randperm(len(labels), generator=draw) for draw in draws])
            order += rows[:, : len(labels) // size * size].repeat(members // count, 1).split(size, 1)
        # member m has the weights and the order of seed m % count, whatever its rate
        starts = iter([about["seed"] + member % count for member in range(members)])

        def build() -> nn.Module:
            torch.manual_seed(next(starts))
            network: nn.Module = self.build(**{self.load: value})
            return network

        return train_many(
            build,
            tasks,
            order=order,
            optimizer=partial(
                Momentum, rates=rates, momentum=about["train_momentum"], weight_decay=about["train_weight_decay"]
            ),
            scheduler=lambda o: OneCycleLR(o, 1.0, total_steps=len(order), cycle_momentum=False),
            keep_diverged=True,
        )

    def _one_by_one(self, value: Any, degrees: Sequence[Any]) -> list[dict[str, Tensor]]:
        assert self.train is not None
        states = []
        for degree, number in product(degrees, range(self.about["seeds"])):
            network = self._network(value, self.about["seed"] + number)
            self.train(network, self.training, seed=self.about["seed"] + number, **{self.temperature: degree})
            states.append({name: tensor.detach().clone() for name, tensor in network.state_dict().items()})
        return states

    def shapes(self, value: Any) -> str:
        """Return a digest of the names and shapes of the tensors of a network."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self._network(value, 0).state_dict().items()}
        return hashlib.blake2b(repr(shapes).encode(), digest_size=16).hexdigest()

    def _network(self, value: Any, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network: nn.Module = self.build(**{self.load: value})
        return network

    def _write(self, cell: Mapping[str, Any], states: Sequence[Mapping[str, Tensor]]) -> None:
        networks = [self._network(cell[self.load], 0) for _ in states]
        for network, state in zip(networks, states, strict=True):
            network.load_state_dict(dict(state))
        metrics = landscape_metrics(
            networks,
            self.training,
            self.test,
            hessian_samples=self.about["hessian_samples"],
            probes=self.about["probes"],
            **self.options,
        )
        with atomic_output(self.folder / _name(cell)) as target:
            target.mkdir(exist_ok=True)
            for number, (state, measures) in enumerate(zip(states, metrics.networks, strict=True)):
                save_file(
                    {name: tensor.contiguous() for name, tensor in state.items()}, target / f"seed-{number}.safetensors"
                )
                accuracy = 0.0 if measures.diverged else measures.test_accuracy
                text = json.dumps(_plain({"accuracy": accuracy, **asdict(measures)}), indent=2)
                (target / f"seed-{number}.metrics.json").write_text(text + "\n", "utf-8")
            found = {name: getattr(metrics, name) for name in MEASURES}
            (target / "cell.json").write_text(json.dumps(_plain(found), indent=2) + "\n", "utf-8")


class Momentum(torch.optim.Optimizer):
    """Momentum on stacked parameters, with a learning rate of its own for each member.

    Parameters
    ----------
    params : iterable of Tensor of shape (members, ...)
        Stacked parameters.
    rates : Tensor of shape (members,)
        What the learning rate, which a scheduler changes, is multiplied by.
    momentum, weight_decay : float
        As for :class:`torch.optim.SGD`.

    Examples
    --------
    >>> weight = torch.zeros(2, 1, requires_grad=True)
    >>> optimizer = Momentum([weight], torch.tensor([1.0, 10.0]), momentum=0.9, weight_decay=0.0)
    >>> weight.grad = torch.ones(2, 1)
    >>> optimizer.step()
    >>> weight.tolist()
    [[-1.0], [-10.0]]
    """

    def __init__(self, params: Any, rates: Tensor, *, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": 1.0, "momentum": momentum, "weight_decay": weight_decay})
        self.rates = rates

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step."""
        for group in self.param_groups:
            members = [p for p in group["params"] if p.grad is not None]
            gradients = torch._foreach_add([p.grad for p in members], members, alpha=group["weight_decay"])
            speeds = [self.state[p].setdefault("speed", torch.zeros_like(p)) for p in members]
            torch._foreach_mul_(speeds, group["momentum"])
            torch._foreach_add_(speeds, gradients)
            rates = group["lr"] * self.rates.to(members[0])
            moves = [rates.view(-1, *[1] * (p.ndim - 1)) for p in members]
            torch._foreach_addcmul_(members, speeds, moves, value=-1)


def _begin(folder: Path, about: Mapping[str, Any]) -> None:
    """Write what the zoo is, or check that it is the one that is there; its axes may grow."""
    file = folder / "zoo.json"
    text = json.loads(json.dumps(about))
    if file.exists():
        there = read_json(file)
        axes = ("load", "temperature")
        grows = (*axes, "networks")
        odd = [key for key in text if key not in grows and there.get(key) != text[key]]
        networks = {**text["networks"], **there.get("networks", {})}
        odd += ["networks"] if any(networks[key] != value for key, value in text["networks"].items()) else []
        odd += [key for key in axes if there.get(key, {}).keys() != text[key].keys()]
        if odd:
            found = {key: there.get(key) for key in odd[:3]}
            raise CheckpointError(f"another zoo in {folder}", found=found, expected={key: text[key] for key in odd[:3]})
        for key in axes:
            ((name, values),) = text[key].items()
            text[key] = {name: sorted({*there[key][name], *values})}
        text["networks"] = networks
    folder.mkdir(parents=True, exist_ok=True)
    write_file(file, json.dumps(text, indent=2) + "\n")


def _axis(what: str, axis: Axis) -> tuple[str, Sequence[Any]]:
    if len(axis) != 1 or not all(len(values) for values in axis.values()):
        raise HyperparameterError(what, found=dict(axis), expected="one name with its values")
    ((name, values),) = axis.items()
    if len(set(values)) < len(values) or not all(isinstance(value, (int, float)) and value > 0 for value in values):
        raise HyperparameterError(what, found=list(values), expected="numbers above 0 that differ")
    return name, values


def _pairs(samples: Samples) -> tuple[list[Any], list[Any]]:
    pairs = take(samples)
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise ShapeError("training samples", found=type(pairs[0]).__name__, expected="pairs (input, class)")
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _name(cell: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in cell.items())


def _point(metrics: LandscapeMetrics) -> list[float]:
    return [math.log(max(metrics.train_loss, 1e-6)), metrics.mode_connectivity, metrics.cka]


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    return math.nan if value is None else value
