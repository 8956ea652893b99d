r"""Zoos: the weights of many networks of one architecture as the rows of one matrix.

A zoo is a float32 matrix of members x weights, memory-mapped where it lies on disk, with the manifest that turns a row
back into a state dict, and for each member the features of a few labelled examples of its task.
:func:`weightsmith.core.training.train_many` trains all members together.

Legend: ``N`` members, ``P`` weights of one, ``C`` classes, ``S`` examples of a class, ``F`` features.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from weightsmith.core.errors import (
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
    ShapeError,
)
from weightsmith.core.io import atomic_output, read_json
from weightsmith.core.tied import tensor_owners
from weightsmith.predict._shared.members import (
    ACCURACY,
    SUPPORT,
    find_members,
    of_all,
    read_accuracy,
    read_support,
    read_weights,
    stacked,
)

__all__ = ["Slot", "WeightZoo"]

RUNNING = ("running_mean", "running_var", "num_batches_tracked")
"""Statistics of data, not weights: they are re-estimated, never generated."""

CHANCE = 0.05
"""Share of the way from guessing to always right below which a member has learnt nothing."""

COMPARED = 64
"""Members that are compared to find out whether they are alike."""


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in a row.

    Attributes
    ----------
    name : str
        Its key in the state dict.
    shape : tuple of int
        Its shape.
    dtype : str
        Its type, as torch names it.
    start : int
        Its first place in the row.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int

    @property
    def size(self) -> int:
        """Its number of weights."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def place(self) -> slice:
        """Its part of the row."""
        return slice(self.start, self.start + self.size)


class WeightZoo:
    """Many networks of one architecture as one matrix.

    Parameters
    ----------
    weights_NP : ndarray of shape (members, weights)
        One member a row, float32.
    slots : sequence of Slot
        Where the tensors lie in a row.
    template : mapping of str to Tensor
        What is not generated: integer buffers and running statistics, copied into every state dict.
    aliases : mapping of str to str
        Names of tied tensors, by the name of the one that is stored.
    support_NCSF : ndarray of shape (members, classes, examples, features), optional
        Features of labelled examples of each member's task, classes in the order of the member's outputs.
    accuracy_N : ndarray of shape (members,), optional
        Of each member on its own task, in [0, 1]. Members that are no better than guessing give a warning, where there
        are examples to tell the number of classes.

    Examples
    --------
    >>> zoo = WeightZoo.from_state_dicts([torch.nn.Linear(2, 1).state_dict() for _ in range(3)])
    >>> zoo.weights_NP.shape, [slot.name for slot in zoo.slots]
    ((3, 3), ['weight', 'bias'])
    >>> sorted(zoo.state_dict(zoo.weights_NP[0]))
    ['bias', 'weight']
    """

    def __init__(
        self,
        weights_NP: np.ndarray,
        slots: Sequence[Slot],
        template: Mapping[str, Tensor] | None = None,
        aliases: Mapping[str, str] | None = None,
        support_NCSF: np.ndarray | None = None,
        accuracy_N: np.ndarray | None = None,
    ) -> None:
        if weights_NP.ndim != 2 or len(weights_NP) < 2:
            raise ShapeError("weights of a zoo", found=weights_NP.shape, expected="(2 or more members, weights)")
        if weights_NP.shape[1] != sum(slot.size for slot in slots):
            raise ShapeError("weights of a member", found=weights_NP.shape[1], expected=sum(s.size for s in slots))
        if support_NCSF is not None and (support_NCSF.ndim != 4 or len(support_NCSF) != len(weights_NP)):
            raise ShapeError(
                "support",
                found=support_NCSF.shape,
                expected=f"({len(weights_NP)} members, classes, examples, features)",
            )
        if accuracy_N is not None and accuracy_N.shape != weights_NP.shape[:1]:
            raise ShapeError("accuracy", found=accuracy_N.shape, expected=f"({len(weights_NP)} members,)")
        if accuracy_N is not None and not ((accuracy_N >= 0) & (accuracy_N <= 1)).all():
            raise HyperparameterError("accuracy of members", found=accuracy_N.tolist()[:5], expected="in [0, 1]")
        bad = np.flatnonzero(~np.isfinite(weights_NP).all(1))
        if len(bad):
            raise NonFiniteError(f"member {bad[0]} of the zoo", do="Leave out networks whose training diverged.")
        self.weights_NP, self.slots, self.support_NCSF = weights_NP, tuple(slots), support_NCSF
        self.template, self.aliases, self.accuracy_N = dict(template or {}), dict(aliases or {}), accuracy_N
        if accuracy_N is not None and support_NCSF is not None:
            _warn_of_chance(accuracy_N, support_NCSF.shape[1])

    def __len__(self) -> int:
        return len(self.weights_NP)

    @classmethod
    def from_state_dicts(
        cls,
        states: Iterable[Mapping[str, Tensor]],
        *,
        include: Sequence[str] | None = None,
        support_NCSF: np.ndarray | Tensor | None = None,
        accuracy_N: Sequence[float] | np.ndarray | None = None,
    ) -> WeightZoo:
        """Make a zoo of state dicts.

        Parameters
        ----------
        states : iterable of mapping of str to Tensor
            One per member, with the same names and shapes.
        include : sequence of str, optional
            Names of the tensors to take, a classifier's head for instance; else all.
        support_NCSF : array of shape (members, classes, examples, features), optional
        accuracy_N : array of shape (members,), optional
            See the class.

        Raises
        ------
        ShapeError
            If members differ; the first difference is named. Or if there are fewer than two.
        NonFiniteError
            If a member has NaN or infinite weights.
        """
        rows, first = [], None
        for number, state in enumerate(states):
            layout = _layout(state, include)
            first = first or layout
            _compare(first, layout, f"member {number}")
            rows.append(np.concatenate([_flat(state[slot.name]) for slot in layout.slots]))
        if first is None:
            raise ShapeError("members of a zoo", found=0, expected="2 or more")
        support = None if support_NCSF is None else np.asarray(support_NCSF, np.float32)
        accuracy = None if accuracy_N is None else np.asarray(accuracy_N, np.float32)
        return cls(np.stack(rows), first.slots, first.template, first.aliases, support, accuracy)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], *, include: Sequence[str] | None = None) -> WeightZoo:
        """Make a zoo of the checkpoints in a folder, or open one that :meth:`save` has written.

        Members are ``.safetensors`` files, or folders with a ``model.safetensors`` or ``adapter_model.safetensors``,
        in the order of their names. Beside ``NAME.safetensors`` (or the folder ``NAME``) a file
        ``NAME.support.safetensors`` may hold the examples of its task, and ``NAME.metrics.json`` its ``accuracy``;
        either all members have one or none. ``include`` names the tensors to take; of a saved zoo, these are read into
        memory.

        Raises
        ------
        CheckpointError
            If nothing is there, a file cannot be read, or only some members have examples or an accuracy.
        ShapeError, NonFiniteError
            As :meth:`from_state_dicts`.
        """
        folder = Path(folder)
        if (folder / "manifest.json").exists():
            zoo = cls._open(folder)
            return zoo if include is None else zoo._only(include)
        members = find_members(folder)
        if not members:
            raise CheckpointError(f"no members in {folder}", expected=".safetensors files, or folders with one")
        supports = of_all(folder, members, SUPPORT, read_support)
        accuracies = of_all(folder, members, ACCURACY, read_accuracy)
        return cls.from_state_dicts(
            map(read_weights, members.values()),
            include=include,
            support_NCSF=stacked(supports) if supports else None,
            accuracy_N=list(accuracies.values()) if accuracies else None,
        )

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the matrix, the examples and the manifest; :meth:`from_folder` maps them into memory.

        Raises
        ------
        CheckpointError
            If there is something already, or the folder cannot be written.
        """
        with atomic_output(folder, overwrite=overwrite, nbytes=self.weights_NP.nbytes) as target:
            target.mkdir(exist_ok=True)
            np.save(target / "weights.npy", self.weights_NP)
            if self.support_NCSF is not None:
                np.save(target / "support.npy", self.support_NCSF)
            if self.template:
                save_file(
                    {name: tensor.contiguous() for name, tensor in self.template.items()},
                    target / "template.safetensors",
                )
            manifest = {"slots": [asdict(slot) for slot in self.slots], "aliases": self.aliases}
            if self.accuracy_N is not None:
                manifest["accuracy"] = self.accuracy_N.tolist()
            (target / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
        return Path(folder)

    def state_dict(self, row_P: np.ndarray | Tensor) -> dict[str, Tensor]:
        """Turn a row into a state dict, each tensor in its own type.

        Parameters
        ----------
        row_P : array of shape (weights,), or longer
            What is beyond the last weight is padding and ignored.
        """
        row = torch.as_tensor(row_P if isinstance(row_P, Tensor) else np.array(row_P)).float().reshape(-1)
        total = self.weights_NP.shape[1]
        if len(row) < total:
            raise ShapeError("row of a zoo", found=len(row), expected=total)
        state = {
            slot.name: row[slot.place].reshape(slot.shape).to(getattr(torch, slot.dtype), copy=True)
            for slot in self.slots
        }
        state |= {name: tensor.clone() for name, tensor in self.template.items()}
        return state | {alias: state[name] for alias, name in self.aliases.items()}

    def mean_cosine_similarity(self) -> float:
        """How alike members' hidden units of the same place are: the mean cosine, of the matrix where it is highest.

        Near 0, members come from different initialisations: the same unit is at another place in each. What all units
        of a matrix share is left out, and so are the last matrix, whose places are given, and vectors. 1 where nothing
        is left: a single layer has no hidden units.

        Examples
        --------
        >>> WeightZoo.from_state_dicts([torch.nn.Linear(4, 4).state_dict() for _ in range(3)]).mean_cosine_similarity()
        1.0
        """
        found = []
        for slot in [slot for slot in self.slots if len(slot.shape) > 1 and slot.size][:-1]:
            units_NOI = torch.from_numpy(np.array(self.weights_NP[:COMPARED, slot.place]))
            units_NOI = units_NOI.reshape(len(units_NOI), slot.shape[0], -1)
            rows_NP = functional.normalize((units_NOI - units_NOI.mean(1, keepdim=True)).flatten(1))
            count = len(rows_NP)
            found.append((rows_NP.sum(0).square().sum().item() - count) / (count * (count - 1)))
        return max(found, default=1.0)

    def _only(self, include: Sequence[str]) -> WeightZoo:
        """The zoo of some of the tensors."""
        slots = {slot.name: slot for slot in self.slots}
        _check_names(include, [*slots, *self.template, *self.aliases])
        kept: dict[str, Slot] = {}  # by the name of the tensor that holds the weights
        aliases, places, start = {}, [], 0
        for name in (name for name in (*slots, *self.aliases) if name in include):
            owner = self.aliases.get(name, name)
            if owner in kept:
                aliases[name] = kept[owner].name
                continue
            kept[owner] = replace(slots[owner], name=name, start=start)
            places.append(self.weights_NP[:, slots[owner].place])
            start += slots[owner].size
        if not kept:
            raise ShapeError("tensors to include", found=list(include), expected="weights among them")
        template = {name: tensor for name, tensor in self.template.items() if name in include}
        weights_NP = np.concatenate(places, axis=1)
        return WeightZoo(weights_NP, [*kept.values()], template, aliases, self.support_NCSF, self.accuracy_N)

    @classmethod
    def _open(cls, folder: Path) -> WeightZoo:
        manifest = read_json(folder / "manifest.json")
        try:
            weights = np.load(folder / "weights.npy", mmap_mode="r")
            support, template = folder / "support.npy", folder / "template.safetensors"
            return cls(
                weights,
                [Slot(**{**slot, "shape": tuple(slot["shape"])}) for slot in manifest["slots"]],
                load_file(template) if template.exists() else None,
                manifest["aliases"],
                np.load(support, mmap_mode="r") if support.exists() else None,
                np.asarray(manifest["accuracy"], np.float32) if "accuracy" in manifest else None,
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"cannot read the zoo in {folder}", found=error) from error


class _Layout(NamedTuple):
    slots: tuple[Slot, ...]
    template: dict[str, Tensor]
    aliases: dict[str, str]


def _layout(state: Mapping[str, Tensor], include: Sequence[str] | None) -> _Layout:
    _check_names(include or (), state)
    slots: list[Slot] = []
    template: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    owners = tensor_owners({name: state[name] for name in include or state})
    start = 0
    for name, owner in owners.items():
        tensor = state[name]
        if not tensor.is_floating_point() or name.endswith(RUNNING):
            template[name] = tensor.detach().clone()
        elif owner != name:
            aliases[name] = owner
        else:
            slots.append(Slot(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), start))
            start += slots[-1].size
    return _Layout(tuple(slots), template, aliases)


def _check_names(include: Iterable[str], names: Collection[str]) -> None:
    missing = [name for name in include if name not in names]
    if missing:
        raise ShapeError(f"tensor {missing[0]!r} to include", found="none", expected=f"one of {list(names)[:5]} ...")


def _compare(first: _Layout, other: _Layout, where: str) -> None:
    for mine, its in zip(first.slots, other.slots, strict=False):
        if mine != its:
            found = f"{its.name} {its.shape} {its.dtype}"
            raise ShapeError(f"{where} of the zoo", found=found, expected=f"{mine.name} {mine.shape} {mine.dtype}")
    if len(first.slots) != len(other.slots):
        raise ShapeError(f"tensors of {where} of the zoo", found=len(other.slots), expected=len(first.slots))


def _warn_of_chance(accuracy_N: np.ndarray, classes: int) -> None:
    guess = 1 / classes
    poor = np.flatnonzero(accuracy_N <= guess + CHANCE * (1 - guess))
    if classes > 1 and len(poor):
        warnings.warn(
            f"{len(poor)} of {len(accuracy_N)} members are no better than guessing among {classes} classes, such as "
            f"member {poor[0]} with {accuracy_N[poor[0]]:.1%}: what is drawn will be no better. Leave them out.",
            stacklevel=4,
        )


def _flat(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().float().reshape(-1))
