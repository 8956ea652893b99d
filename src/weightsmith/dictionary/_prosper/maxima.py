r"""Superposition by the largest magnitude: what MCA and MMCA share.

.. math:: y_d = \overline W_d(s) + \varepsilon_d, \qquad
          \overline W_d(s) = \operatorname{sign}(t_d)\, |t_d|^{1/\varrho}, \quad
          t_d = \sum_h s_h \operatorname{sign}(W_{hd})\, |W_{hd}|^{\varrho}

a soft version of the value of largest magnitude, sharper the larger :math:`\varrho`. The M-step weights a point's
feature by how much of it a component explains,

.. math:: A_{hd}(s) = s_h \min\!\left(1, \bigl(|W_{hd}| / |\overline W_d(s)|\bigr)^{\varrho - 1}\right), \qquad
          W_{hd} = \frac{\sum_n \langle A_{hd} \rangle_n\, y_{nd}}{\sum_n \langle A_{hd} \rangle_n} .

Both depend on a point only through its set of candidates. Points with the same candidates are therefore processed
together, and the powers, which dominate the cost, are computed once per set.

Legend: ``N`` points, ``D`` features, ``H`` components, ``C`` candidates, ``K`` states, ``S`` states of several
candidates, ``M`` memberships: pairs of such a state and one of its candidates.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightsmith.dictionary._prosper.base import TruncatedEM
from weightsmith.dictionary._prosper.model import Expectation, Parameters, Sums, rescaled_pi
from weightsmith.dictionary._prosper.start import Moments
from weightsmith.dictionary._prosper.states import States

__all__ = ["MaximumEM"]

LEAST_WEIGHT = 0.1
"""Share of the least noise below which the magnitude of no entry of a component falls."""

LEAST_RATIO = 1e-8
"""Share of the largest candidate below which an entry counts as this share: smaller ones underflow in the powers."""


class _Group(NamedTuple):
    """Points with the same candidates, and the superposition of their states."""

    points: Int[Tensor, "points"]
    candidates_C: Int[Tensor, "candidates"]
    maximum_SD: Float[Tensor, "sets features"]
    share_MD: Float[Tensor, "members features"]


@dataclass(eq=False, repr=False)
class MaximumEM(TruncatedEM[Parameters]):
    """Base of the models that superpose by the largest magnitude; a model adds its sharpness and its candidates."""

    @abstractmethod
    def _sharpness(self, temperature: float) -> float:
        """The exponent of the soft maximum."""

    @abstractmethod
    def _candidates(
        self, data_ND: Float[Tensor, "points features"], parameters: Parameters, n_candidates: int
    ) -> Int[Tensor, "points candidates"]:
        """The components that fit every point best."""

    @abstractmethod
    def _new_components(
        self,
        weighted_HD: Float[Tensor, "components features"],
        weight_HD: Float[Tensor, "components features"],
        parameters: Parameters,
    ) -> Float[Tensor, "components features"]:
        """The components from the sums of weighted points and of weights."""

    def _start(self, moments: Moments, generator: torch.Generator) -> Parameters:
        return Parameters(
            self._components_start(moments, generator), self._pi_start(generator), self._sigma_start(moments)
        )

    def _floored(self, parameters: Parameters, sigma_floor: float) -> Parameters:
        parameters = super()._floored(parameters, sigma_floor)
        components_HD = parameters.components_HD
        sign_HD = torch.where(components_HD < 0, -1.0, 1.0).double()
        return replace(parameters, components_HD=sign_HD * components_HD.abs().clamp(min=LEAST_WEIGHT * sigma_floor))

    def _joint(
        self, data_ND: Tensor, parameters: Parameters, states: States, temperature: float
    ) -> tuple[Tensor, Tensor]:
        candidates_NC = self._candidates(data_ND, parameters, states.n_candidates)
        components_HD = parameters.components_HD
        error_NK = torch.zeros(len(data_ND), states.size, dtype=torch.float64, device=data_ND.device)
        square_H = components_HD.square().sum(1)
        error_NK[:, 1 : states.first_set] = square_H - 2 * (data_ND @ components_HD.T)
        for group in self._groups(candidates_NC, components_HD, states, self._sharpness(temperature), shares=False):
            square_S = group.maximum_SD.square().sum(1)
            match_NS = data_ND[group.points] @ group.maximum_SD.T
            error_NK[group.points, states.first_set :] = square_S - 2 * match_NS
        error_NK += data_ND.square().sum(1, keepdim=True)
        return candidates_NC, self._log_prior(parameters, states) - error_NK / (2 * parameters.sigma.square())

    def _sums(self, block: Expectation, parameters: Parameters, states: States, temperature: float) -> Sums:
        components_HD = parameters.components_HD
        single_NH = block.q_NK[:, 1 : states.first_set]
        used_N = block.q_NK.sum(1)
        weighted_HD = single_NH.T @ block.data_ND
        weight_H1 = single_NH.sum(0)[:, None]
        error = (used_N * block.data_ND.square().sum(1)).sum()
        error += (weight_H1 * components_HD.square() - 2 * weighted_HD * components_HD).sum()
        weight_HD = weight_H1.expand_as(weighted_HD).clone()
        state_M, candidate_M = states.sets_SC.nonzero(as_tuple=True)
        sharpness = self._sharpness(temperature)
        for group in self._groups(block.candidates_NC, components_HD, states, sharpness, shares=True):
            q_NS = block.q_NK[group.points, states.first_set :]
            data_SD, weight_S1 = q_NS.T @ block.data_ND[group.points], q_NS.sum(0)[:, None]
            error += (weight_S1 * group.maximum_SD.square() - 2 * data_SD * group.maximum_SD).sum()
            component_M = group.candidates_C[candidate_M]
            weighted_HD.index_add_(0, component_M, group.share_MD * data_SD[state_M])
            weight_HD.index_add_(0, component_M, group.share_MD * weight_S1[state_M])
        return {
            "usage": states.expected_codes(block.q_NK, block.candidates_NC).sum(0),
            "weighted_HD": weighted_HD,
            "weight_HD": weight_HD,
            "error": error,
        }

    def _maximize(self, sums: Sums, n_used: float, parameters: Parameters, states: States) -> Parameters:
        features = parameters.components_HD.shape[1]
        return replace(
            parameters,
            components_HD=self._new_components(sums["weighted_HD"], sums["weight_HD"], parameters),
            pi=rescaled_pi(sums["usage"].sum(), n_used, float(parameters.pi), states),
            sigma=(sums["error"] / (features * n_used)).clamp(min=0).sqrt(),
        )

    def _groups(
        self, candidates_NC: Tensor, components_HD: Tensor, states: States, sharpness: float, *, shares: bool
    ) -> Iterator[_Group]:
        """The points by their set of candidates; how states share a feature only where it is asked for."""
        if not len(states.sets_SC):
            return
        sets, of_point_N, counts = candidates_NC.unique(dim=0, return_inverse=True, return_counts=True)
        points = of_point_N.argsort(stable=True).split(counts.tolist())
        state_M, candidate_M = states.sets_SC.nonzero(as_tuple=True)
        for candidates_C, of_set in zip(sets, points, strict=True):
            weight_CD = components_HD[candidates_C]
            unit_D = weight_CD.abs().amax(0)
            ratio_CD = (weight_CD.abs() / unit_D).clamp(min=LEAST_RATIO)
            power_CD = ratio_CD.pow(sharpness - 1)
            total_SD = states.sets_SC @ (weight_CD.sign() * power_CD * ratio_CD)
            root_SD = total_SD.abs().pow(1 / sharpness)
            share_MD = torch.zeros(0, len(unit_D), dtype=torch.float64, device=unit_D.device)
            if shares:  # opposite signs that cancel leave a root of 0: then every one explains the feature
                below_SD = total_SD.abs() / root_SD.clamp(min=1e-300)
                share_MD = (power_CD[candidate_M] / below_SD[state_M].clamp(min=1e-300)).clamp(max=1.0)
            yield _Group(of_set, candidates_C, unit_D * total_SD.sign() * root_SD, share_MD)

    def _draw(self, parameters: Parameters, n_samples: int, generator: torch.Generator) -> Tensor:
        shape = (n_samples, len(parameters.components_HD))
        return (torch.rand(shape, dtype=torch.float64, generator=generator) < parameters.pi).double()

    def _superpose(self, codes_NH: Tensor, parameters: Parameters) -> Tensor:
        data_ND = torch.zeros(len(codes_NH), parameters.components_HD.shape[1], dtype=torch.float64)
        for code_N, component_D in zip(codes_NH.T, parameters.components_HD, strict=True):
            part_ND = code_N[:, None] * component_D
            data_ND = torch.where(part_ND.abs() > data_ND.abs(), part_ND, data_ND)
        return data_ND
