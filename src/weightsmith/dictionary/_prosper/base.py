r"""Truncated expectation maximisation: what the six models share.

A model explains a point :math:`y` by a state :math:`s` of its hidden units. The exact posterior runs over all states;
here every point keeps only the states in which at most ``max_active`` units are active, taken from the
``n_candidates`` units that fit the point best, and those with a single unit active (expectation truncation):

.. math:: q_n(s) = \frac{p(s)\,p(y_n \mid s)^{\beta}}{\sum_{s' \in K_n} p(s')\,p(y_n \mid s')^{\beta}}, \qquad
          s \in K_n

with an inverse temperature :math:`\beta` that rises to 1. The M-step maximises the expected log-joint under
:math:`q_n` over the points that the truncation can explain: those with the largest
:math:`\log \sum_{s \in K_n} p(s, y_n)`.

Legend: ``N`` points, ``D`` features, ``H`` components, ``C`` candidates, ``K`` states, ``T`` the likeliest states.

References
----------
Exarchakis, Bornschein, Sheikh, Dai, Henniges, Drefs, Lücke, "ProSper - A Python Library for Probabilistic Sparse Coding
with Non-Standard Priors and Superpositions", arXiv 1908.06843. Expectation truncation: Lücke and Eggert, JMLR 11, 2010.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from weightsmith.core.choices import check_number, check_whole
from weightsmith.core.errors import HyperparameterError, ShapeError
from weightsmith.core.processes import all_reduce_sum
from weightsmith.dictionary._prosper.model import Expectation, Model, P, Sums
from weightsmith.dictionary._prosper.schedule import Settings, settings_of
from weightsmith.dictionary._prosper.shards import keep_largest, shared_seed, worst_row
from weightsmith.dictionary._prosper.start import CHUNK_BYTES, Moments
from weightsmith.dictionary._prosper.states import States, truncated_prior
from weightsmith.dictionary._shared.checks import moderate
from weightsmith.dictionary._shared.estimator import DictionaryEstimator, as_numpy, as_tensor
from weightsmith.dictionary._shared.processes import total

__all__ = ["Posterior", "TruncatedEM"]

CACHE_BYTES = 512 << 20
"""Up to this size the E-step's results are kept for the M-step; beyond it they are computed twice."""

DEAD = 1e-9
"""Expected number of points that a component explains below which it counts as dead."""


class Posterior(NamedTuple):
    """The likeliest states of every point.

    Attributes
    ----------
    states : ndarray of shape (n_samples, top_k, n_components)
        Values of all units, the likeliest state first.
    probabilities : ndarray of shape (n_samples, top_k)
        Under the truncated posterior, descending.
    marginals : ndarray of shape (n_samples, n_components)
        Probability that a unit is active.
    """

    states: np.ndarray
    probabilities: np.ndarray
    marginals: np.ndarray


@dataclass(eq=False, repr=False)
class TruncatedEM(Model[P], DictionaryEstimator):
    """Base of the models: restarts, annealing, data cut, chunks, processes, and scikit-learn's contract.

    A model adds its parameters' start, its candidates, its log-joint, its M-step and a generator. Under ``torchrun``
    each process passes its own rows to ``fit`` and all end with the same parameters.
    """

    def fit(self, X: Any, y: object = None) -> Self:
        """Learn the parameters by truncated EM.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            At least two rows, finite. Under ``torchrun`` this process's rows.
        y : ignored
            Present for API consistency.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the data or a hyper-parameter is out of range.
        """
        data_ND = self._rows(X, reset=True, ensure_min_samples=2)
        states = self._states()
        moments = Moments.of(data_ND)
        settings = [now.scaled(moments.scale) for now in self._settings()]
        seed, rank = shared_seed(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        own = torch.Generator().manual_seed(seed + 1 + rank)
        best: tuple[P, list[float]] | None = None
        for _ in range(self.n_init):
            start = _moved(self._start(moments, generator), self.device)
            parameters, curve = self._em(data_ND, start, states, settings, moments.sigma_floor, generator, own)
            if best is None or curve[-1] > best[1][-1]:
                best = parameters, curve
        assert best is not None
        self._parameters, self.lower_bound_curve_ = _moved(best[0], "cpu"), np.array(best[1])
        self.n_iter_ = len(best[1]) - 1
        self.lower_bound_ = best[1][-1]
        self._publish(self._parameters, data_ND.numpy().dtype)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the posterior mean of every unit's value, an array of shape (n_samples, n_components)."""
        data_ND, states, parameters = self._fitted(X)
        means = [
            self._means(block, parameters, states) for block in self._expect(data_ND, parameters, states, Settings())
        ]
        return self._array(torch.cat(means), data_ND)

    def score_samples(self, X: Any) -> np.ndarray:
        """Return the log-likelihood of every point; the truncation makes it a lower bound, an array of (n_samples,)."""
        data_ND, states, parameters = self._fitted(X)
        scores = [block.likelihood_N for block in self._expect(data_ND, parameters, states, Settings())]
        return (torch.cat(scores) + self._log_constant(parameters)).cpu().numpy()

    def score(self, X: Any, y: object = None) -> float:
        """Return the mean log-likelihood per point, to compare models and sizes."""
        return float(self.score_samples(X).mean())

    def posterior(self, X: Any, top_k: int = 1, *, adaptive: bool = False) -> Posterior:
        """Return the likeliest states of every point.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Points.
        top_k : int, default: 1
            How many states, 1 to the number of states kept.
        adaptive : bool, default: False
            Points whose likeliest state has ``max_active`` active units are inferred again with one more candidate and
            one more active unit, until there are none left or the number of states exceeds its limit.

        Returns
        -------
        Posterior
            States, their probabilities, and the marginals.

        Raises
        ------
        HyperparameterError
            If ``top_k`` is out of range.
        """
        data_ND, states, parameters = self._fitted(X)
        if not 1 <= top_k <= states.size:
            raise HyperparameterError("top_k", found=top_k, expected=f"1 to {states.size}")
        parts = self._posterior(data_ND, parameters, states, top_k)
        while adaptive and states.max_active < states.n_components:
            again = (parts[0][:, 0] != 0).sum(1) >= states.max_active
            try:
                states = self._truncation(min(states.n_candidates + 1, states.n_components), states.max_active + 1)
            except HyperparameterError:
                break
            if not bool(again.any()):
                break
            for part, renewed in zip(
                parts, self._posterior(data_ND[again.cpu()], parameters, states, top_k), strict=True
            ):
                part[again] = renewed
        return Posterior(*(self._array(part, data_ND) for part in parts))

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Generate points from the model.

        Parameters
        ----------
        n_samples : int, default: 1
            At least 1.
        random_state : int, RandomState or None
            Seed of the draws.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            The points.
        codes : ndarray of shape (n_samples, n_components)
            The values of the units.

        Raises
        ------
        HyperparameterError
            If ``n_samples`` is out of range.
        """
        check_is_fitted(self)
        check_whole("n_samples", n_samples)
        generator = torch.Generator().manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))
        codes_NH = self._draw(self._parameters, n_samples, generator)
        data_ND = self._superpose(codes_NH, self._parameters)
        noise_ND = torch.randn(data_ND.shape, dtype=torch.float64, generator=generator)
        return (data_ND + self._colored(noise_ND, self._parameters)).numpy(), codes_NH.numpy()

    def inverse_transform(self, codes: Any) -> np.ndarray:
        """Return the noiseless points that codes stand for, an array of shape (n_samples, n_features)."""
        check_is_fitted(self)
        codes_NH = torch.as_tensor(np.asarray(codes), dtype=torch.float64)
        if codes_NH.ndim != 2 or codes_NH.shape[1] != len(self._parameters.components_HD):
            raise ShapeError(
                "codes", found=tuple(codes_NH.shape), expected=f"(n_samples, {len(self._parameters.components_HD)})"
            )
        return self._superpose(codes_NH, self._parameters).numpy().astype(self.components_.dtype)

    # The algorithm ----------------------------------------------------------------------------------------------------

    def _em(
        self,
        data_ND: Tensor,
        parameters: P,
        states: States,
        settings: list[Settings],
        sigma_floor: float,
        generator: torch.Generator,
        own: torch.Generator,
    ) -> tuple[P, list[float]]:
        """Run the steps; the curve holds the mean log-likelihood before each of them and after the last."""
        curve: list[float] = []
        for index, now in enumerate(settings):
            parameters = self._floored(_noisy(parameters, now, generator), sigma_floor)
            parameters, likelihood = self._step(data_ND, parameters, states, now, own, sigma_floor)
            curve.append(likelihood)
            settled = all(later == now for later in settings[index:]) and now.temperature == 1
            if settled and len(curve) > 1 and abs(curve[-1] - curve[-2]) < self.tol * abs(curve[-1]):
                break
        likelihoods = [block.likelihood_N.sum() for block in self._expect(data_ND, parameters, states, Settings())]
        last = total(float(sum(likelihoods))) / total(float(len(data_ND)))
        return parameters, [*curve, last + float(self._log_constant(parameters))]

    def _step(
        self,
        data_ND: Tensor,
        parameters: P,
        states: States,
        now: Settings,
        generator: torch.Generator,
        sigma_floor: float,
    ) -> tuple[P, float]:
        """One E-step and M-step; also the mean log-likelihood per point under the old parameters."""
        if now.partial:
            count = math.ceil(now.partial * len(data_ND))
            data_ND = data_ND[torch.randperm(len(data_ND), generator=generator)[:count]]
        n_all = total(float(len(data_ND)))
        n_used = self._n_used(n_all, parameters, states, now)

        def expect() -> Iterator[Expectation]:
            return self._expect(data_ND, parameters, states, now, generator)

        blocks: list[Expectation] | None = None
        if len(data_ND) * (states.size + data_ND.shape[1]) * 8 <= CACHE_BYTES:
            blocks = list(expect())
        kept_N: Bool[Tensor, "points"] | None = None
        if n_used < n_all:
            kept_N = keep_largest(torch.cat([block.evidence_N for block in blocks or expect()]), n_used)
        sums: Sums = {}
        likelihood, done, worst, worst_D = 0.0, 0, math.inf, data_ND.new_zeros(data_ND.shape[1]).double()
        for block in blocks or expect():
            likelihood += float(block.likelihood_N.sum())
            low, where = block.likelihood_N.min(0)
            if float(low) < worst:
                worst, worst_D = float(low), block.data_ND[where]
            if kept_N is not None:
                block.q_NK.mul_(kept_N[done : done + len(block.q_NK), None])
            done += len(block.q_NK)
            for name, value in self._sums(block, parameters, states, now.temperature).items():
                sums[name] = sums[name] + value if name in sums else value
        all_reduce_sum(*sums.values())
        likelihood = total(likelihood) / n_all + float(self._log_constant(parameters))
        new = self._floored(self._maximize(sums, float(n_used), parameters, states), sigma_floor)
        dead = (sums["usage"] < DEAD).nonzero()
        if len(dead):  # one per step: two on the same point would stay equal
            new = self._revived(new, int(dead[0]), worst_row(worst, worst_D.to(new.components_HD.device)))
            new = self._floored(new, sigma_floor)
        return new, likelihood

    def _n_used(self, n_all: float, parameters: P, states: States, now: Settings) -> int:
        """How many points the M-step keeps: the share that the truncated prior can generate."""
        mass, _ = truncated_prior(states.n_components, states.max_active, self._activity(parameters))
        least = min(int(n_all), states.n_components + 1)
        return max(int(n_all * (1 - (1 - min(mass, 1.0)) * now.cut)), least)

    def _expect(
        self,
        data_ND: Tensor,
        parameters: P,
        states: States,
        now: Settings,
        generator: torch.Generator | None = None,
    ) -> Iterator[Expectation]:
        """The E-step, chunk by chunk: nothing in it depends on another point."""
        rows = max(1, CHUNK_BYTES // (8 * max(states.size, data_ND.shape[1])))
        for chunk_ND in data_ND.split(rows):
            chunk_ND = chunk_ND.to(parameters.components_HD)
            if now.data_noise:
                noise_ND = torch.randn(chunk_ND.shape, dtype=torch.float64, generator=generator)
                chunk_ND = chunk_ND + now.data_noise * noise_ND.to(chunk_ND)
            candidates_NC, joint_NK = self._joint(chunk_ND, parameters, states, now.temperature)
            if now.temperature == 1:
                evidence_N = likelihood_N = _normalize(joint_NK)
            else:
                likelihood_N = joint_NK.logsumexp(1)
                evidence_N = _normalize(self._temper(joint_NK, now, parameters, states))
            yield Expectation(chunk_ND, candidates_NC, joint_NK, evidence_N, likelihood_N)

    def _posterior(self, data_ND: Tensor, parameters: P, states: States, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
        parts = []
        for block in self._expect(data_ND, parameters, states, Settings()):
            top = block.q_NK.topk(top_k, 1)
            marginals_NH = states.expected_codes(block.q_NK, block.candidates_NC, power=0.0)
            parts.append((states.codes(top.indices, block.candidates_NC), top.values, marginals_NH))
        codes, probabilities, marginals = (torch.cat(part) for part in zip(*parts, strict=True))
        return codes, probabilities, marginals

    # Checks and conversions -------------------------------------------------------------------------------------------

    def _rows(self, X: Any, *, reset: bool, ensure_min_samples: int = 1) -> Tensor:
        """The data checked, as a tensor in their own precision; float64 where they had another."""
        dtypes = [np.float64, np.float32]
        rows = validate_data(self, as_numpy(X), reset=reset, dtype=dtypes, ensure_min_samples=ensure_min_samples)
        return as_tensor(moderate(rows))

    def _fitted(self, X: Any) -> tuple[Tensor, States, P]:
        check_is_fitted(self)
        return self._rows(X, reset=False), self._states(), _moved(self._parameters, self.device)

    def _states(self) -> States:
        """The truncation, with the defaults filled in."""
        order = "Keep max_active <= n_candidates <= n_components."
        count = check_whole("n_components", self.n_components)
        automatic = self.n_candidates == "auto"
        candidates = min(count, 8) if automatic else check_whole("n_candidates", self.n_candidates, 1, count, order)
        automatic = self.max_active == "auto"
        active = min(candidates, 4) if automatic else check_whole("max_active", self.max_active, 1, candidates, order)
        return self._truncation(candidates, active)

    def _truncation(self, n_candidates: int, max_active: int) -> States:
        return States(self.n_components, n_candidates, max_active, self._unit_values(), self.device)

    def _settings(self) -> list[Settings]:
        check_whole("max_iter", self.max_iter)
        check_whole("n_init", self.n_init)
        check_number("tol", self.tol)
        schedule = self._schedule if self.schedule == "auto" else self.schedule or {}
        if not isinstance(schedule, Mapping):
            raise HyperparameterError("schedule", found=schedule, expected='"auto", None or a mapping')
        return settings_of(schedule, self.max_iter)

    def _array(self, tensor: Tensor, like: Tensor) -> np.ndarray:
        return tensor.to(device="cpu", dtype=like.dtype).numpy()


def _normalize(joint_NK: Float[Tensor, "points states"]) -> Float[Tensor, "points"]:
    """Turn log-joints into probabilities, in place, and return the logarithms of their sums."""
    top_N1 = joint_NK.amax(1, keepdim=True)
    sum_N1 = joint_NK.sub_(top_N1).exp_().sum(1, keepdim=True)
    joint_NK.div_(sum_N1)
    return (top_N1 + sum_N1.log()).squeeze(1)


def _noisy(parameters: P, now: Settings, generator: torch.Generator) -> P:
    """The parameters with the noise of the step added."""
    scales = {"components_HD": now.components_noise, "pi": now.pi_noise, "sigma": now.sigma_noise}
    changed = {
        name: value + scale * torch.randn(value.shape, dtype=torch.float64, generator=generator).to(value)
        for name, scale in scales.items()
        if scale and (value := getattr(parameters, name)) is not None
    }
    return replace(parameters, **changed) if changed else parameters


def _moved(parameters: P, device: str) -> P:
    tensors = {field.name: getattr(parameters, field.name).to(device) for field in fields(parameters)}
    return replace(parameters, **tensors)
