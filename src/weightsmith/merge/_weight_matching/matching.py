r"""Find the permutations that bring one network's weights closest to another's, one permutation at a time.

.. math:: \max_\pi \; \langle \theta_a, \pi(\theta_b) \rangle

which is :math:`\min_\pi \lVert \theta_a - \pi(\theta_b) \rVert^2`, as permutations keep norms. With all other
permutations pair, the best :math:`P` is a linear assignment: :math:`\max_P \langle C, P \rangle`, where :math:`C` sums,
over every axis of every weight that :math:`P` acts on, the products of the slices of :math:`a` and :math:`b`.

Legend: ``R`` blocks with an order of their own (1 for most permutations), ``n`` indices, ``K`` all other numbers.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.io import StoredState
from weightsmith.core.linalg import is_finite
from weightsmith.core.progress import track
from weightsmith.core.results import Result
from weightsmith.core.symmetry import Permutations, Symmetry
from weightsmith.merge._weight_matching.assignment import assign
from weightsmith.merge._weight_matching.weight_pair import InMemoryPair, OffloadedPair, WeightPair

__all__ = ["Matching", "Normalize", "match_weights"]

Normalize: TypeAlias = Literal["none", "layer"]

TOLERANCE = 1e-6
"""A gain below this share of the product of the norms is rounding, and is not taken."""

WHOSE = ("the first model", "the second model")

JOINT = 64
"""Blocks up to this number are matched together with the orders inside them."""


@dataclass(frozen=True)
class Matching:
    """The permutations that a matching found.

    Attributes
    ----------
    perms : dict of str to Tensor
        For :meth:`Symmetry.permute` on the second model.
    objective : float
        Inner product of the first model's permutable weights with the second's permuted ones (scaled by tensor where
        ``normalize="layer"``).
    history : tuple of float
        The objective at the start and after every sweep; it never falls. Before the first sweep there is one pass from
        the inputs to the outputs.
    distance_before, distance_after : float
        Euclidean distance between all permutable weights.
    starts : tuple of float
        Final objective of each start.
    """

    perms: Permutations
    objective: float
    history: tuple[float, ...]
    distance_before: float
    distance_after: float
    starts: tuple[float, ...]

    @property
    def sweeps(self) -> int:
        """Sweeps over all permutations from the best start."""
        return len(self.history) - 1

    @property
    def distance_drop(self) -> float:
        """The share by which the distance fell."""
        return 1 - self.distance_after / self.distance_before if self.distance_before else 0.0

    def add_to_result(self, symmetry: Symmetry, result: Result) -> None:
        """Add the totals, the permutations as a file, and the axes that were not permuted to a command's result."""
        result.totals |= {
            "permutations": len(symmetry.groups),
            "sweeps": self.sweeps,
            "distance_before": self.distance_before,
            "distance_after": self.distance_after,
        }
        identity = symmetry.identity()
        if all(self.perms[name].equal(identity[name]) for name in identity):
            result.notes.append(
                "No unit was moved: the two networks are in one order already, as networks fine-tuned from one start "
                "are. Plain averaging gives the same."
            )
        result.notes += [f"{key} keeps the order of an axis: it {reason}." for key, reason in symmetry.left_out.items()]
        result.files["permutations.json"] = json.dumps({name: perm.tolist() for name, perm in self.perms.items()})


def match_weights(
    first: nn.Module | Mapping[str, Tensor],
    second: nn.Module | Mapping[str, Tensor],
    symmetry: Symmetry,
    *,
    restarts: int = 1,
    sweeps: int = 100,
    normalize: Normalize = "none",
    start: Permutations | None = None,
    generator: torch.Generator | None = None,
) -> Matching:
    """Match the second network's units to the first's by their weights (coordinate descent of Git Re-Basin).

    Parameters
    ----------
    first, second : nn.Module or state dict
        Of one architecture; only read. A :class:`~weightsmith.core.io.StoredState` stays on disk: its tensors are
        read whenever they are needed, and neither they nor large cost matrices are kept in memory.
    symmetry : Symmetry
        The groups that may be permuted (:func:`~weightsmith.core.symmetry.find_symmetry`).
    restarts : int, default: 1
        Number of starts, of which the best is kept: the first after a pass from the inputs to the outputs, the second
        at the identity (as the reference), the others at random permutations.
    sweeps : int, default: 100
        Bound on sweeps over all permutations; it is seldom reached.
    normalize : {"none", "layer"}, default: "none"
        Whether each tensor counts by the product of its norms, or all tensors equally.
    start : dict of str to Tensor, optional
        Permutations to start at; further starts are random. By default one pass goes from the inputs to the outputs
        first, in which each permutation is matched by the weights whose other axes are matched already.
    generator : torch.Generator, optional
        Draws the order of the permutations in a sweep and the random starts; seed 0 by default.

    Returns
    -------
    Matching
        The permutations and the objective on the way.

    Raises
    ------
    HyperparameterError
        If ``restarts`` or ``sweeps`` is below 1.
    NonFiniteError
        If a weight holds NaN or infinity, or products of weights overflow.
    ShapeError
        If the networks are not of one architecture.
    UnsupportedModelError
        If weights are quantized.

    References
    ----------
    Ainsworth, Hayase, Srinivasa, arXiv 2209.04836.

    Examples
    --------
    >>> from weightsmith.core.symmetry import find_symmetry
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> symmetry = find_symmetry(model, torch.rand(1, 3))
    >>> shuffled = symmetry.permute(model.state_dict(), {"0.weight[0]": torch.tensor([2, 0, 3, 1])})
    >>> match_weights(model, shuffled, symmetry).perms["0.weight[0]"]
    tensor([1, 3, 0, 2])
    """
    check_choice("normalize", normalize, Normalize)
    for name, value in (("restarts", restarts), ("sweeps", sweeps)):
        if value < 1:
            raise HyperparameterError(name, found=value, expected=">= 1")
    generator = generator or torch.Generator().manual_seed(0)
    pair = _pair_of(first, second, symmetry)
    if start is not None:
        symmetry.check_permutations(start)
    norms, before = _survey(pair, symmetry)
    best: _Descent | None = None
    objectives = []
    for number in track(range(restarts), "matching weights"):
        planned = number < (1 if start else 2)
        begin = start or symmetry.identity() if planned else symmetry.random(generator)
        descent = _Descent(symmetry, pair.permuted(begin), norms, begin, normalize)
        if not number and start is None:
            descent = descent.warm_start()
        descent.run(sweeps, generator)
        objectives.append(descent.objective)
        if best is None or descent.objective > best.objective + best.scale * TOLERANCE:
            best = descent
    assert best is not None
    after = math.sqrt(sum(_squared(a, b) for key in norms for a, b in best.pair.pairs(key)))
    return Matching(best.perms, best.objective, tuple(best.history), before, after, tuple(objectives))


def _pair_of(
    first: nn.Module | Mapping[str, Tensor], second: nn.Module | Mapping[str, Tensor], symmetry: Symmetry
) -> WeightPair:
    """The two networks, in memory or on disk; refused where they are of another architecture."""
    a, b = (model.state_dict() if isinstance(model, nn.Module) else model for model in (first, second))
    for state, whose in zip((a, b), WHOSE, strict=True):
        symmetry.check_state(state, whose)
    if not symmetry.groups:
        raise ShapeError("there is nothing to permute", do="See left_out of the symmetry for the reasons.")
    offloaded = isinstance(a, StoredState) or isinstance(b, StoredState)
    return OffloadedPair(symmetry, a, b) if offloaded else InMemoryPair.of(symmetry, a, b)


def _survey(pair: WeightPair, symmetry: Symmetry) -> tuple[dict[str, float], float]:
    """The product of each permutable weight's two norms, and the networks' distance; refuse what is not finite."""
    norms, squares = {}, 0.0
    for key in symmetry.axes:
        if key in symmetry.buffers:
            continue
        sizes = [0.0, 0.0]
        for part in pair.pairs(key):
            for i, (tensor, whose) in enumerate(zip(part, WHOSE, strict=True)):
                if not is_finite(tensor):
                    raise NonFiniteError(
                        f"tensor {key!r} of {whose} holds NaN or infinity", do="Repair the checkpoint."
                    )
                sizes[i] += float(tensor.norm().double().square())
            squares += _squared(*part)
        norms[key] = math.sqrt(sizes[0]) * math.sqrt(sizes[1])
    if not sum(norms.values()) <= torch.finfo(pair.dtype).max:  # which bounds every sum of products
        raise NonFiniteError("products of the weights overflow", do="Give the weights in float64.")
    return norms, math.sqrt(squares)


def _squared(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().square().sum())


class _Descent:
    """Coordinate ascent from one start; the pair's second network is always as permuted so far."""

    def __init__(
        self,
        symmetry: Symmetry,
        pair: WeightPair,
        norms: Mapping[str, float],
        start: Permutations,
        normalize: Normalize,
    ) -> None:
        self.symmetry, self.pair, self.perms = symmetry, pair, start
        self.weight = {key: 1.0 if normalize == "none" or not norm else 1 / norm for key, norm in norms.items()}
        self.scales = {key: norm * self.weight[key] for key, norm in norms.items()}
        self.scale = sum(self.scales.values())
        self.objective = sum(map(self._inner, norms))
        self.history = [self.objective]
        self.places = {
            name: [(key, axis) for key, axis in symmetry.members(name) if key in norms] for name in symmetry.groups
        }
        self.within: dict[str, list[str]] = {name: [] for name in symmetry.groups}
        for name, group in symmetry.groups.items():
            if group.within:
                self.within[group.within].append(name)
        self.of_key: dict[str, set[str]] = {key: set() for key in norms}
        for name, places in self.places.items():
            for key, _ in places:
                self.of_key[key].add(name)
        self.near = {name: set().union(*(self.of_key[key] for key, _ in at)) for name, at in self.places.items()}
        self.costs: dict[tuple[str, int, str], Tensor] = {}
        self.duals: dict[str, Tensor] = {}  # of the last assignment, which the next one starts from
        self.active_keys = set(norms)  # the weights that the objective counts

    def warm_start(self) -> _Descent:
        """Match from the inputs on, each permutation by the weights whose other axes are matched already.

        The reference starts its sweeps at the identity, where one of the two axes of most weights, that of the units
        behind, is not matched yet. After this pass fewer sweeps are needed, and their objective is higher.
        """
        started = copy.copy(self)
        started.pair, started.history, started.costs, started.duals = self.pair.copy(), list(self.history), {}, {}
        matched: set[str] = set()
        for name in self.symmetry.groups:
            own = {name, *self.within[name]}
            started.active_keys = {key for key in self._keys(own) if self.of_key[key] - own <= matched}
            if any(len(self.symmetry.shapes[key]) > 1 for key in started.active_keys):
                started._improve(name)
            matched |= own
        started.active_keys = self.active_keys
        started.costs.clear()
        started.objective = sum(map(started._inner, self.weight))
        return started if started.objective > self.objective + TOLERANCE * self.scale else self

    def run(self, sweeps: int, generator: torch.Generator) -> None:
        """Improve one permutation after the other until none changes; those whose costs did not change are skipped."""
        names = list(self.symmetry.groups)
        dirty = set(names)
        for _ in range(sweeps):
            for number in torch.randperm(len(names), generator=generator).tolist():
                name = names[number]
                if name not in dirty:
                    continue
                dirty.discard(name)
                for moved in self._improve(name):
                    dirty |= self.near[moved] - ({name} if self._is_linear(name) else set())
            self.history.append(self.objective)
            if not dirty:
                break

    def _improve(self, name: str) -> list[str]:
        """Solve one permutation, the others fixed; return the names of those that changed."""
        inside = self.within[name]
        if inside and self.symmetry.groups[name].size <= JOINT:
            step = self._joint(name, inside)
            if self._take(step):
                return list(step)
        cost_Rnn = self._cost(name)
        dual_Rn = self.duals.setdefault(name, torch.zeros(cost_Rnn.shape[:2], dtype=torch.float64))
        step_Rn = torch.stack([assign(cost_nn, dual_n) for cost_nn, dual_n in zip(cost_Rnn, dual_Rn, strict=True)])
        there_Rn, here_Rn = cost_Rnn.gather(-1, step_Rn.unsqueeze(-1)).squeeze(-1), cost_Rnn.diagonal(dim1=1, dim2=2)
        gain = float((there_Rn.double() - here_Rn.double()).sum())
        if gain <= self._least([name]):
            return []
        step = {name: step_Rn if self.symmetry.groups[name].within else step_Rn[0]}
        # with two axes of one weight the cost is only the slope
        if not self._take(step, gain if self._is_linear(name) else None):
            return []
        self.duals[name] = dual_Rn.gather(1, step_Rn)
        return [name]

    def _is_linear(self, name: str) -> bool:
        """Whether a permutation acts on no weight twice."""
        return len(self._keys([name])) == len(self.places[name])

    def _least(self, names: Iterable[str]) -> float:
        """The smallest gain that is not rounding."""
        return TOLERANCE * sum(self.scales[key] for key in self._keys(names) if key in self.active_keys)

    def _take(self, step: Permutations, gain: float | None = None) -> bool:
        """Make a step if it is a gain; the gain is measured where it is not given."""
        keys = self._keys(step)
        if gain is None:
            gain = sum(self._inner(key, step) - self._inner(key) for key in keys if key in self.active_keys)
            if gain <= self._least(step):
                return False
        self.pair.move(step, keys)
        self.objective += gain
        self._forget(step, keys)
        self.perms = self.symmetry.compose(self.perms, step)
        return True

    def _keys(self, names: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(key for name in names for key, _ in self.places[name]))

    def _active_places(self, name: str) -> list[tuple[str, int]]:
        return [(key, axis) for key, axis in self.places[name] if key in self.active_keys]

    def _inner(self, key: str, step: Permutations | None = None) -> float:
        """The inner product of a weight of both networks, the second's after a step."""
        total = 0.0
        for a, b in self.pair.pairs(key):
            b = self.symmetry.permute_tensor(key, b, step) if step else b
            # row by row in the weights' own precision, the rows' sum in float64
            rows = torch.linalg.vecdot(a.flatten(1), b.flatten(1)) if a.ndim > 1 else a * b
            total += float(rows.double().sum())
        return self.weight[key] * total

    def _cost(self, name: str) -> Float[Tensor, "R n n"]:
        """The score of each index of the second network at each place; one matrix per block."""
        p = self.symmetry.groups[name]
        blocks = self.symmetry.groups[p.within].size if p.within else 1
        cost_Rnn = torch.zeros(blocks, p.size, p.size, dtype=self.pair.dtype)
        for key, axis in self._active_places(name):
            known_Rnn = self.costs.get((key, axis, name))
            if known_Rnn is None and cost_Rnn.numel() > self.pair.keeps * math.prod(self.symmetry.shapes[key]):
                self._add_products(cost_Rnn, key, axis, name, self.weight[key])  # not worth the memory
                continue
            if known_Rnn is None:
                known_Rnn = self._add_products(torch.zeros_like(cost_Rnn), key, axis, name)
                self.costs[key, axis, name] = known_Rnn
            cost_Rnn.add_(known_Rnn, alpha=self.weight[key])
        return cost_Rnn

    def _add_products(
        self, cost_Rnn: Float[Tensor, "R n n"], key: str, axis: int, name: str, weight: float = 1.0
    ) -> Float[Tensor, "R n n"]:
        """Add the products of one weight's slices."""
        for a_RnK, b_RnK in self._slices(key, axis, name, self.symmetry.groups[name].within):
            if (a_RnK.device, a_RnK.dtype) == (cost_Rnn.device, cost_Rnn.dtype):
                cost_Rnn.baddbmm_(a_RnK, b_RnK.mT, alpha=weight)
            else:
                cost_Rnn.add_((a_RnK @ b_RnK.mT).to(cost_Rnn), alpha=weight)
        return cost_Rnn

    def _forget(self, step: Permutations, keys: Iterable[str]) -> None:
        """Drop the costs of weights that moved; where only the cost's own axis moved, permute them instead."""
        (name, step_n), *others = step.items()
        alone, moved = not others and step_n.ndim == 1, set(keys)
        for key, axis, owner in [place for place in self.costs if place[0] in moved]:
            if alone and owner == name and len([at for at in self.places[name] if at[0] == key]) == 1:
                self.costs[key, axis, owner] = self.costs[key, axis, owner][:, :, step_n]
            else:
                del self.costs[key, axis, owner]

    def _slices(self, key: str, axis: int, name: str, outer: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Both networks' slices ``[R, n, K]`` along the indices of a permutation on one axis, of each block."""
        for part in self.pair.pairs(key):
            size = part[0].shape[axis]
            for block in self.symmetry.axes[key][axis]:
                if name not in block.groups:
                    continue
                if block.groups == (name,) and block.sizes[0] == size:
                    a, b = (x.movedim(axis, 0).reshape(1, size, -1) for x in part)
                else:
                    front = [block.groups.index(other) for other in ((outer, name) if outer else (name,))]
                    places = block.places().movedim(front, [*range(len(front))])
                    lead = (*([] if outer else [1]), *places.shape[: len(front)])
                    rows = places.flatten().to(part[0].device)
                    a, b = (x.index_select(axis, rows).movedim(axis, 0).reshape(*lead, -1) for x in part)
                yield a, b

    def _joint(self, name: str, inside: list[str]) -> Permutations:
        """Match blocks and the orders inside them: the score of a pair of blocks is that of its best inner orders."""
        n = self.symmetry.groups[name].size
        score_nn = self._outer_only(name, inside)
        inner: dict[str, Int[Tensor, "n n m"]] = {}
        for child in inside:
            slices = [
                (self.weight[key], *both)
                for key, axis in self._active_places(child)
                for both in self._slices(key, axis, child, name)
            ]
            best = []
            for row in range(n):
                products = [w * torch.einsum("mk,bnk->bmn", a_nmK[row], b_nmK) for w, a_nmK, b_nmK in slices]
                cost_nmm = torch.stack(products).sum(0)
                best.append(torch.stack([assign(cost_mm) for cost_mm in cost_nmm]))
                score_nn[row] += cost_nmm.cpu().gather(-1, best[-1].unsqueeze(-1)).double().sum((-1, -2))
            inner[child] = torch.stack(best)
        outer_n = assign(score_nn)
        back_n = outer_n.argsort()  # the orders inside are those of the old blocks
        return {name: outer_n} | {child: best_nnm[back_n, torch.arange(n)] for child, best_nnm in inner.items()}

    def _outer_only(self, name: str, inside: list[str]) -> Float[Tensor, "n n"]:
        """The scores of blocks by the weights that hold no order inside them."""
        n = self.symmetry.groups[name].size
        score_nn = torch.zeros(n, n, dtype=torch.float64)
        seen = {place for child in inside for place in self.places[child]}
        for key, axis in self._active_places(name):
            if (key, axis) not in seen:
                for a_1nK, b_1nK in self._slices(key, axis, name, ""):
                    score_nn += self.weight[key] * (a_1nK[0] @ b_1nK[0].T).double().cpu()
        return score_nn
