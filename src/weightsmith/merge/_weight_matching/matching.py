r"""Find the permutations that bring one network's weights closest to another's, one permutation at a time.

.. math:: \max_\pi \; \langle \theta_a, \pi(\theta_b) \rangle

which is :math:`\min_\pi \lVert \theta_a - \pi(\theta_b) \rVert^2`, as permutations keep norms. With all other
permutations held, the best :math:`P` is a linear assignment: :math:`\max_P \langle C, P \rangle`, where :math:`C` sums,
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

from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.io import StoredState
from weightsmith.core.linalg import is_finite
from weightsmith.core.progress import track
from weightsmith.core.results import Result
from weightsmith.merge._weight_matching.assignment import assign
from weightsmith.merge._weight_matching.holding import Held, InMemory, OnDisk, permute
from weightsmith.merge._weight_matching.spec import Permutations, PermutationSpec

__all__ = ["Matching", "Normalize", "match_weights"]

Normalize: TypeAlias = Literal["none", "layer"]

TOLERANCE = 1e-6
"""A gain below this share of the product of the norms is rounding, and no reason to go on."""

WHOSE = ("the first model", "the second model")

JOINT = 64
"""Blocks up to this number are matched together with the orders inside them."""


@dataclass(frozen=True)
class Matching:
    """The permutations found.

    Attributes
    ----------
    perms : dict of str to Tensor
        For :meth:`PermutationSpec.apply` on the second model.
    objective : float
        Inner product of the first model's permutable weights with the second's permuted ones (scaled by tensor where
        ``normalize="layer"``).
    history : tuple of float
        The objective at the start and after every sweep; it never falls. Before the first sweep there is one pass from
        the inputs to the outputs.
    distance_before, distance_after : float
        Euclidean distance between all permutable weights.
    starts : tuple of float
        Final objective of each start; the first start is the identity.
    """

    perms: Permutations
    objective: float
    history: tuple[float, ...]
    distance_before: float
    distance_after: float
    starts: tuple[float, ...]

    @property
    def sweeps(self) -> int:
        """Sweeps over all permutations that the best start took."""
        return len(self.history) - 1

    @property
    def distance_drop(self) -> float:
        """By what share the distance fell."""
        return 1 - self.distance_after / self.distance_before if self.distance_before else 0.0

    def tell(self, spec: PermutationSpec, result: Result) -> None:
        """Add to a command's result: the totals, the permutations as a file, and what was left in place."""
        result.totals |= {
            "permutations": len(spec.permutations),
            "sweeps": self.sweeps,
            "distance_before": self.distance_before,
            "distance_after": self.distance_after,
        }
        identity = spec.identity()
        if all(self.perms[name].equal(identity[name]) for name in identity):
            result.notes.append(
                "Every unit is where it was: the two are in one order already, as networks trained from one start are. "
                "Plain averaging gives the same."
            )
        result.notes += [f"{key} keeps an axis as it is: it {reason}." for key, reason in spec.left_out.items()]
        result.files["permutations.json"] = json.dumps({name: perm.tolist() for name, perm in self.perms.items()})


def match_weights(
    first: nn.Module | Mapping[str, Tensor],
    second: nn.Module | Mapping[str, Tensor],
    spec: PermutationSpec,
    *,
    restarts: int = 1,
    sweeps: int = 100,
    normalize: Normalize = "none",
    start: Permutations | None = None,
    generator: torch.Generator | None = None,
) -> Matching:
    """Match the second network's units to the first's by their weights (Git Re-Basin's coordinate descent).

    Parameters
    ----------
    first, second : nn.Module or state dict
        Of one architecture; only read. A :class:`~weightsmith.core.io.StoredState` stays on disk: its tensors are
        read whenever they are needed, and neither they nor what they cost are kept.
    spec : PermutationSpec
        What may be permuted.
    restarts : int, default: 1
        Number of starts: the first from ``start``, the others from random permutations; the best is kept.
    sweeps : int, default: 100
        Bound on sweeps over all permutations; it is seldom reached.
    normalize : {"none", "layer"}, default: "none"
        Whether every tensor counts by its size, or all alike.
    start : dict of str to Tensor, optional
        Permutations to sweep from. By default one pass goes from the inputs to the outputs first, in which each
        permutation is matched by the weights whose other axes are in order already; the reference has no such pass and
        starts at the identity.
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
        If weights are quantised.

    References
    ----------
    Ainsworth, Hayase, Srinivasa, arXiv 2209.04836.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> spec = PermutationSpec.from_model(model, torch.rand(1, 3))
    >>> shuffled = spec.apply(model.state_dict(), {"0.weight[0]": torch.tensor([2, 0, 3, 1])})
    >>> match_weights(model, shuffled, spec).perms["0.weight[0]"]
    tensor([1, 3, 0, 2])
    """
    for name, value in (("restarts", restarts), ("sweeps", sweeps)):
        if value < 1:
            raise HyperparameterError(name, found=value, expected=">= 1")
    generator = generator or torch.Generator().manual_seed(0)
    held = _held(first, second, spec)
    if start is not None:
        spec.check_permutations(start)
    survey = _survey(held, spec)
    best: _Descent | None = None
    objectives = []
    for number in track(range(restarts), "matching weights"):
        begin = spec.random(generator) if number else start or spec.identity()
        descent = _Descent(spec, held.permuted(begin), survey.norms, begin, normalize)
        if not number and start is None:
            descent = descent.greeted()
        descent.run(sweeps, generator)
        objectives.append(descent.objective)
        if best is None or descent.objective > best.objective + best.scale * TOLERANCE:
            best = descent
    assert best is not None
    after = math.sqrt(sum(_squared(a, b) for key in survey.norms for a, b in best.held.pairs(key)))
    return Matching(best.perms, best.objective, tuple(best.history), survey.distance, after, tuple(objectives))


def _held(
    first: nn.Module | Mapping[str, Tensor], second: nn.Module | Mapping[str, Tensor], spec: PermutationSpec
) -> Held:
    """The two networks, in memory or on disk, once they are of the spec's architecture."""
    a, b = (model.state_dict() if isinstance(model, nn.Module) else model for model in (first, second))
    for state, whose in zip((a, b), WHOSE, strict=True):
        spec.check_state(state, whose)
    if not spec.permutations:
        raise ShapeError("there is nothing to permute", do="See the spec's left_out for the reasons.")
    on_disk = isinstance(a, StoredState) or isinstance(b, StoredState)
    return OnDisk(spec, a, b) if on_disk else InMemory.of(spec, a, b)


@dataclass(frozen=True)
class _Survey:
    """What one look at all weights tells: the product of the norms of each, and the distance."""

    norms: dict[str, float]
    distance: float


def _survey(held: Held, spec: PermutationSpec) -> _Survey:
    """Look at all weights that have a say, before any is permuted, and refuse what is not finite."""
    norms, squares = {}, 0.0
    for key in spec.axes:
        if key in spec.buffers:
            continue
        sizes = [0.0, 0.0]
        for pair in held.pairs(key):
            for i, (tensor, whose) in enumerate(zip(pair, WHOSE, strict=True)):
                if not is_finite(tensor):
                    raise NonFiniteError(
                        f"tensor {key!r} of {whose} holds NaN or infinity", do="Repair the checkpoint."
                    )
                sizes[i] += float(tensor.norm().double().square())
            squares += _squared(*pair)
        norms[key] = math.sqrt(sizes[0]) * math.sqrt(sizes[1])
    if not sum(norms.values()) <= torch.finfo(held.dtype).max:  # which bounds every sum of products
        raise NonFiniteError("products of the weights overflow", do="Give the weights in float64.")
    return _Survey(norms, math.sqrt(squares))


def _squared(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().square().sum())


class _Descent:
    """Coordinate ascent from one start; what is held of the second network is always as permuted so far."""

    def __init__(
        self,
        spec: PermutationSpec,
        held: Held,
        norms: Mapping[str, float],
        start: Permutations,
        normalize: Normalize,
    ) -> None:
        self.spec, self.held, self.perms = spec, held, start
        self.weight = {key: 1.0 if normalize == "none" or not norm else 1 / norm for key, norm in norms.items()}
        self.scales = {key: norm * self.weight[key] for key, norm in norms.items()}
        self.scale = sum(self.scales.values())
        self.objective = sum(map(self._inner, norms))
        self.history = [self.objective]
        # where each permutation acts: (key, axis)
        self.places: dict[str, list[tuple[str, int]]] = {name: [] for name in spec.permutations}
        for key in norms:
            for axis, blocks in enumerate(spec.axes[key]):
                for name in dict.fromkeys(name for block in blocks for name in block.names if name):
                    self.places[name].append((key, axis))
        self.inside: dict[str, list[str]] = {name: [] for name in spec.permutations}
        for name, p in spec.permutations.items():
            if p.within:
                self.inside[p.within].append(name)
        self.of_key: dict[str, set[str]] = {key: set() for key in norms}
        for name, places in self.places.items():
            for key, _ in places:
                self.of_key[key].add(name)
        self.near = {name: set().union(*(self.of_key[key] for key, _ in at)) for name, at in self.places.items()}
        self.costs: dict[tuple[str, int, str], Tensor] = {}
        self.prices: dict[str, Tensor] = {}  # of the last assignment, which the next one starts from
        self.heard = set(norms)  # the weights that have a say

    def greeted(self) -> _Descent:
        """Match from the inputs on, each permutation by the weights whose other axes are matched already.

        The reference starts its sweeps at the identity, where half of what a layer sees, the units behind it, is in no
        order yet. From here on a few sweeps are enough, and they end higher.
        """
        ahead = copy.copy(self)
        ahead.held, ahead.history, ahead.costs, ahead.prices = self.held.copy(), list(self.history), {}, {}
        matched: set[str] = set()
        for name in self.spec.permutations:
            own = {name, *self.inside[name]}
            ahead.heard = {key for key in self._keys(own) if self.of_key[key] - own <= matched}
            if any(len(self.spec.shapes[key]) > 1 for key in ahead.heard):
                ahead._improve(name)
            matched |= own
        ahead.heard = self.heard
        ahead.costs.clear()
        ahead.objective = sum(map(ahead._inner, self.weight))
        return ahead if ahead.objective > self.objective + TOLERANCE * self.scale else self

    def run(self, sweeps: int, generator: torch.Generator) -> None:
        """Improve permutation after permutation until none changes; those with nothing new around them are skipped."""
        names = list(self.spec.permutations)
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
        """Solve one permutation, the others held; return which changed."""
        inside = self.inside[name]
        if inside and self.spec.permutations[name].size <= JOINT:
            step = self._joint(name, inside)
            if self._take(step):
                return list(step)
        cost_Rnn = self._cost(name)
        price_Rn = self.prices.setdefault(name, torch.zeros(cost_Rnn.shape[:2], dtype=torch.float64))
        step_Rn = torch.stack([assign(cost_nn, price_n) for cost_nn, price_n in zip(cost_Rnn, price_Rn, strict=True)])
        there_Rn, here_Rn = cost_Rnn.gather(-1, step_Rn.unsqueeze(-1)).squeeze(-1), cost_Rnn.diagonal(dim1=1, dim2=2)
        gain = float((there_Rn.double() - here_Rn.double()).sum())
        if gain <= self._least([name]):
            return []
        step = {name: step_Rn if self.spec.permutations[name].within else step_Rn[0]}
        # with two axes of one weight the cost is only the slope
        if not self._take(step, gain if self._is_linear(name) else None):
            return []
        self.prices[name] = price_Rn.gather(1, step_Rn)
        return [name]

    def _is_linear(self, name: str) -> bool:
        """Whether a permutation acts on no weight twice."""
        return len(self._keys([name])) == len(self.places[name])

    def _least(self, names: Iterable[str]) -> float:
        """The smallest gain that is none of rounding."""
        return TOLERANCE * sum(self.scales[key] for key in self._keys(names) if key in self.heard)

    def _take(self, step: Permutations, gain: float | None = None) -> bool:
        """Make a step if it is a gain, which is measured where it is not given."""
        keys = self._keys(step)
        if gain is None:
            gain = sum(self._inner(key, step) - self._inner(key) for key in keys if key in self.heard)
            if gain <= self._least(step):
                return False
        self.held.move(step, keys)
        self.objective += gain
        self._forget(step, keys)
        self.perms = self.spec.compose(self.perms, step)
        return True

    def _keys(self, names: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(key for name in names for key, _ in self.places[name]))

    def _heard(self, name: str) -> list[tuple[str, int]]:
        return [(key, axis) for key, axis in self.places[name] if key in self.heard]

    def _inner(self, key: str, step: Permutations | None = None) -> float:
        """The inner product of a weight of both networks, the second's after a step."""
        total = 0.0
        for a, b in self.held.pairs(key):
            b = permute(self.spec, key, b, step) if step else b
            # row by row in the weights' own precision, the rows' sum in float64
            rows = torch.linalg.vecdot(a.flatten(1), b.flatten(1)) if a.ndim > 1 else a * b
            total += float(rows.double().sum())
        return self.weight[key] * total

    def _cost(self, name: str) -> Float[Tensor, "R n n"]:
        """What each index of the second network is worth at each place; within blocks, for each block."""
        p = self.spec.permutations[name]
        blocks = self.spec.permutations[p.within].size if p.within else 1
        cost_Rnn = torch.zeros(blocks, p.size, p.size, dtype=self.held.dtype)
        for key, axis in self._heard(name):
            known_Rnn = self.costs.get((key, axis, name))
            if known_Rnn is None:
                known_Rnn = torch.zeros_like(cost_Rnn)
                for a_RnK, b_RnK in self._slices(key, axis, name, p.within):
                    known_Rnn += (a_RnK @ b_RnK.mT).to(known_Rnn)
                if known_Rnn.numel() <= self.held.keeps * math.prod(self.spec.shapes[key]):  # worth its memory
                    self.costs[key, axis, name] = known_Rnn
            cost_Rnn.add_(known_Rnn.to(cost_Rnn), alpha=self.weight[key])
        return cost_Rnn

    def _forget(self, step: Permutations, keys: Iterable[str]) -> None:
        """Costs of weights that moved are no longer known, but for those that moved along the cost's own axis only."""
        (name, step_n), *others = step.items()
        alone, moved = not others and step_n.ndim == 1, set(keys)
        for key, axis, owner in [place for place in self.costs if place[0] in moved]:
            if alone and owner == name and len([at for at in self.places[name] if at[0] == key]) == 1:
                self.costs[key, axis, owner] = self.costs[key, axis, owner][:, :, step_n]
            else:
                del self.costs[key, axis, owner]

    def _slices(self, key: str, axis: int, name: str, outer: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Both networks' slices ``[R, n, K]`` along the indices of a permutation on one axis, of each block."""
        for pair in self.held.pairs(key):
            size = pair[0].shape[axis]
            for block in self.spec.axes[key][axis]:
                if name not in block.names:
                    continue
                if block.names == (name,) and block.sizes[0] == size:
                    a, b = (x.movedim(axis, 0).reshape(1, size, -1) for x in pair)
                else:
                    front = [block.names.index(other) for other in ((outer, name) if outer else (name,))]
                    places = block.places().movedim(front, [*range(len(front))])
                    lead = (*([] if outer else [1]), *places.shape[: len(front)])
                    rows = places.flatten().to(pair[0].device)
                    a, b = (x.index_select(axis, rows).movedim(axis, 0).reshape(*lead, -1) for x in pair)
                yield a, b

    def _joint(self, name: str, inside: list[str]) -> Permutations:
        """Blocks and the orders inside them: every pair of blocks is worth what its best inner orders are worth."""
        n = self.spec.permutations[name].size
        worth_nn = self._outer_only(name, inside)
        inner: dict[str, Int[Tensor, "n n m"]] = {}
        for child in inside:
            slices = [
                (self.weight[key], *pair)
                for key, axis in self._heard(child)
                for pair in self._slices(key, axis, child, name)
            ]
            best = []
            for row in range(n):
                products = [w * torch.einsum("mk,bnk->bmn", a_nmK[row], b_nmK) for w, a_nmK, b_nmK in slices]
                cost_nmm = torch.stack(products).sum(0)
                best.append(torch.stack([assign(cost_mm) for cost_mm in cost_nmm]))
                worth_nn[row] += cost_nmm.cpu().gather(-1, best[-1].unsqueeze(-1)).double().sum((-1, -2))
            inner[child] = torch.stack(best)
        outer_n = assign(worth_nn)
        back_n = outer_n.argsort()  # the orders inside are those of the old blocks
        return {name: outer_n} | {child: best_nnm[back_n, torch.arange(n)] for child, best_nnm in inner.items()}

    def _outer_only(self, name: str, inside: list[str]) -> Float[Tensor, "n n"]:
        """What blocks are worth by the weights that see no order inside them."""
        n = self.spec.permutations[name].size
        worth_nn = torch.zeros(n, n, dtype=torch.float64)
        seen = {place for child in inside for place in self.places[child]}
        for key, axis in self._heard(name):
            if (key, axis) not in seen:
                for a_1nK, b_1nK in self._slices(key, axis, name, ""):
                    worth_nn += self.weight[key] * (a_1nK[0] @ b_1nK[0].T).double().cpu()
        return worth_nn
