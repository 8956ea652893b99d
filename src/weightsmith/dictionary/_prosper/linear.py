r"""Linear superposition with units of few values: what BSC, TSC and DSC share.

.. math:: y = \sum_h s_h W_h + b + \varepsilon, \qquad s_h \in \{0, \varphi_1, \dots, \varphi_V\}, \quad
          \varepsilon \sim N(0, \sigma^2 I)

Reconstructions of points by states are never formed. With :math:`G = W W^\top` and :math:`r = y - b`

.. math:: \lVert r - W^\top s \rVert^2 = \lVert r \rVert^2 - 2\, s^\top W r + s^\top G s

is one matrix product per chunk: the candidates' entries of :math:`W r` and :math:`G` times a table of the states and
their products of pairs. The second moments come back through the same table.

Legend: ``N`` points, ``D`` features, ``H`` components, ``C`` candidates, ``K`` states, ``S`` states of several
candidates, ``V`` non-zero values, ``P`` pairs of candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightsmith.dictionary._prosper.base import TruncatedEM
from weightsmith.dictionary._prosper.model import Expectation, Parameters, Sums, largest_candidates, rescaled_pi
from weightsmith.dictionary._prosper.schedule import Settings
from weightsmith.dictionary._prosper.start import Moments
from weightsmith.dictionary._prosper.states import States

__all__ = ["LinearEM", "LinearParameters", "solve_components"]


@dataclass(frozen=True)
class LinearParameters(Parameters):
    """Parameters of a linear model.

    Attributes
    ----------
    offset_D : Tensor of shape (features,)
        Added to every point; zero unless it is learned.
    """

    offset_D: Float[Tensor, "features"]


@dataclass(eq=False, repr=False)
class LinearEM(TruncatedEM[LinearParameters]):
    """Base of the linear models; a model adds the values of its units and their prior."""

    fit_offset: bool = field(default=False, kw_only=True)

    def _candidates(
        self, match_NH: Float[Tensor, "points components"], parameters: LinearParameters, n_candidates: int
    ) -> Int[Tensor, "points candidates"]:
        """The components that fit best, from the products of points and components.

        Those whose best value adds most to the log-joint if no other unit is active; each is listed once.
        """
        precision = 1 / (2 * parameters.sigma.square())
        square_H = parameters.components_HD.square().sum(1)
        scores = [
            odds + precision * (2 * value * match_NH - value**2 * square_H)
            for value, odds in zip(self._unit_values(), self._log_odds(parameters), strict=True)
        ]
        return largest_candidates(torch.stack(scores).amax(0), n_candidates)

    def _new_pi(
        self, counts_V: Float[Tensor, "values"], n_used: float, parameters: LinearParameters, states: States
    ) -> Tensor:
        """The prior that explains how often each value was taken."""
        return rescaled_pi(counts_V.sum(), n_used, float(parameters.pi), states)

    def _start(self, moments: Moments, generator: torch.Generator) -> LinearParameters:
        components_HD = self._components_start(moments, generator)
        pi = self._pi_start(generator)
        offset_D = moments.mean_D if self.fit_offset else torch.zeros_like(moments.mean_D)
        if self.fit_offset and self.components_init is None:
            components_HD = components_HD - offset_D
        return LinearParameters(components_HD, pi, self._sigma_start(moments), offset_D)

    def _temper(self, joint_NK: Tensor, now: Settings, parameters: LinearParameters, states: States) -> Tensor:
        joint_NK.div_(now.temperature)
        if not now.anneal_prior:
            joint_NK += (1 - 1 / now.temperature) * self._log_prior(parameters, states)
        return joint_NK

    def _joint(
        self, data_ND: Tensor, parameters: LinearParameters, states: States, temperature: float
    ) -> tuple[Tensor, Tensor]:
        precision = float(1 / (2 * parameters.sigma.square()))
        residual_ND = self._residual(data_ND, parameters)
        match_NH = residual_ND @ parameters.components_HD.T
        candidates_NC = self._candidates(match_NH, parameters, states.n_candidates)
        gram_HH = parameters.components_HD @ parameters.components_HD.T
        log_prior_K = self._log_prior(parameters, states)
        base_N1 = -precision * residual_ND.square().sum(1, keepdim=True)
        joint_NK = torch.empty(len(data_ND), states.size, dtype=torch.float64, device=data_ND.device)
        joint_NK[:, :1] = base_N1
        singles_NVH = joint_NK[:, 1 : states.first_set].unflatten(1, (len(states.values_V), -1))
        prior_VH = log_prior_K[1 : states.first_set].view(len(states.values_V), -1)
        for number, (value, prior_H) in enumerate(zip(states.values_V.tolist(), prior_VH, strict=True)):
            constant_H = prior_H - precision * value**2 * gram_HH.diagonal()
            torch.add(base_N1 + constant_H, match_NH, alpha=2 * value * precision, out=singles_NVH[:, number])
        if len(states.sets_SC):
            first_P, second_P = states.pairs_2P
            flat_NP = candidates_NC[:, first_P] * len(gram_HH) + candidates_NC[:, second_P]
            twice_P = torch.where(first_P == second_P, 1.0, 2.0).double()
            # What is the same for all states, or for all points, rides along in the product: no passes of its own.
            known = [match_NH.gather(1, candidates_NC), gram_HH.view(-1)[flat_NP], base_N1, torch.ones_like(base_N1)]
            prior_S1 = log_prior_K[states.first_set :, None]
            table = [2 * precision * states.sets_SC, -precision * twice_P * states.products_SP]
            table += [torch.ones_like(prior_S1), prior_S1]
            torch.matmul(torch.cat(known, 1), torch.cat(table, 1).T, out=joint_NK[:, states.first_set :])
        return candidates_NC, joint_NK

    def _residual(self, data_ND: Tensor, parameters: LinearParameters) -> Tensor:
        """The points without the offset."""
        return data_ND - parameters.offset_D if self.fit_offset else data_ND

    def _sums(self, block: Expectation, parameters: LinearParameters, states: States, temperature: float) -> Sums:
        components = states.n_components
        residual_ND = self._residual(block.data_ND, parameters)
        used_N = block.q_NK.sum(1)
        code_NH = states.expected_codes(block.q_NK, block.candidates_NC)
        single_VH = block.q_NK[:, 1 : states.first_set].sum(0).unflatten(0, (-1, components))
        sets_NS = block.q_NK[:, states.first_set :]
        first_P, second_P = states.pairs_2P
        flat_NP = block.candidates_NC[:, first_P] * components + block.candidates_NC[:, second_P]
        upper = torch.zeros(components**2, dtype=torch.float64, device=used_N.device)
        upper.index_add_(0, flat_NP.flatten(), (sets_NS @ states.products_SP).flatten())
        upper_HH = upper.view(components, components)
        moment_HH = upper_HH + upper_HH.T - upper_HH.diagonal().diag()
        moment_HH += (states.values_V.square() @ single_VH).diag()
        return {
            "usage": moment_HH.diagonal().clone(),
            "cross_HD": code_NH.T @ residual_ND,
            "moment_HH": moment_HH,
            "code_H": code_NH.sum(0),
            "counts_V": block.q_NK.sum(0) @ states.counts_KV,
            "data_D": used_N @ residual_ND,
            "square": (used_N * residual_ND.square().sum(1)).sum(),
        }

    def _maximize(self, sums: Sums, n_used: float, parameters: LinearParameters, states: States) -> LinearParameters:
        components_HD, features = parameters.components_HD, parameters.components_HD.shape[1]
        gram_HH = components_HD @ components_HD.T
        # The error of the components before the step, as in the reference: with the new ones it is smaller.
        error = sums["square"] - 2 * (sums["cross_HD"] * components_HD).sum() + (gram_HH * sums["moment_HH"]).sum()
        new_HD = solve_components(components_HD, sums["cross_HD"], sums["moment_HH"])
        new = replace(
            parameters,
            components_HD=new_HD,
            pi=self._new_pi(sums["counts_V"], n_used, parameters, states),
            sigma=(error / (features * n_used)).clamp(min=0).sqrt(),
        )
        if not self.fit_offset:
            return new
        return replace(new, offset_D=parameters.offset_D + (sums["data_D"] - sums["code_H"] @ new_HD) / n_used)

    def _revived(self, parameters: LinearParameters, component: int, row_D: Tensor) -> LinearParameters:
        return super()._revived(parameters, component, row_D - parameters.offset_D)

    def _draw(self, parameters: LinearParameters, n_samples: int, generator: torch.Generator) -> Tensor:
        probabilities = self._value_probabilities(parameters)
        drawn = torch.multinomial(probabilities, n_samples * self.n_components, replacement=True, generator=generator)
        values = torch.tensor((0.0, *self._unit_values()), dtype=torch.float64)
        return values[drawn].view(n_samples, self.n_components)

    def _superpose(self, codes_NH: Tensor, parameters: LinearParameters) -> Tensor:
        return codes_NH @ parameters.components_HD + parameters.offset_D

    def _publish(self, parameters: LinearParameters, dtype: np.dtype[Any]) -> None:
        super()._publish(parameters, dtype)
        self.offset_ = parameters.offset_D.numpy().astype(dtype)


def solve_components(
    components_HD: Float[Tensor, "components features"],
    cross_HD: Float[Tensor, "components features"],
    moment_HH: Float[Tensor, "components components"],
) -> Float[Tensor, "components features"]:
    r"""Least-squares components :math:`M^{-1} C`; where the codes do not determine them, the old ones stay.

    Parameters
    ----------
    components_HD : Tensor of shape (components, features)
        The old components.
    cross_HD : Tensor of shape (components, features)
        :math:`C`, the sum over points of code times point.
    moment_HH : Tensor of shape (components, components)
        :math:`M`, the sum over points of code times code; symmetric, positive semi-definite.

    Examples
    --------
    >>> old, one = torch.full((2, 1), 7.0).double(), torch.ones(1, 1).double()
    >>> solve_components(old, torch.cat([3 * one, 0 * one]), torch.diag(torch.tensor([1.0, 0.0])).double()).tolist()
    [[3.0], [7.0]]
    """
    scale_H1 = moment_HH.diagonal().clamp(min=1e-12).rsqrt()[:, None]
    scaled_HH = scale_H1 * moment_HH * scale_H1.T
    missing_HD = scale_H1 * (cross_HD - moment_HH @ components_HD)
    return components_HD + scale_H1 * (torch.linalg.pinv(scaled_HH, rtol=1e-12, hermitian=True) @ missing_HD)
