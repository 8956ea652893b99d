r"""Choose the input channels that reconstruct a layer's outputs best, and re-solve the weights of the kept ones.

With second moments :math:`S` of the inputs, the least-squares weights on the kept columns :math:`C` are

.. math:: W'_C = W_C + W_{\bar C} S_{\bar C C} S_{CC}^{-1}

and equal the paper's factors per output and channel where no weight is 0. The greedy choice maximizes the energy that
the kept columns explain, by Cholesky factorization of :math:`S` with pivots: with :math:`T = S` and
:math:`M = S W^\top W S` it takes :math:`j = \arg\max M_{jj} / T_{jj}`, and eliminates column :math:`j` from both.

Legend: ``O`` outputs, ``I`` inputs (columns of the weight), ``K`` kept ones, ``C`` channels, ``B`` columns of one
channel, ``P`` columns eliminated since the last update of the whole matrices.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.fidelity import contributions, pair_scores
from weightsmith.core.linalg import damped_factor, is_finite, solve_factored

__all__ = ["Consumer", "Score", "channel_scores", "compensate", "explained", "select_channels", "subset_fidelity"]

Score: TypeAlias = Literal["saliency", "fidelity", "energy", "greedy", "l2", "random"]
"""How channels are ranked."""

RIDGE = 1e-4
"""Added to the diagonal of the second moments, as a fraction of its mean."""

PANEL = 64
"""Columns that the greedy choice eliminates between two updates of the whole matrices."""

ROWS = 256
"""Outputs whose products with the second moments, or whose new weights, are computed at a time."""


@dataclass(frozen=True)
class Consumer:
    """One layer that reads the channels.

    Attributes
    ----------
    weight_OI : Tensor of shape (out, in)
        Its weight.
    moment_II : Tensor of shape (in, in)
        Second moments of its inputs.
    columns_CB : Tensor of shape (channels, columns)
        The columns of each channel; the other columns are always kept.
    """

    weight_OI: Float[Tensor, "out in"]
    moment_II: Float[Tensor, "in in"]
    columns_CB: Int[Tensor, "channels columns"]

    @classmethod
    def linear(cls, weight_OI: Float[Tensor, "out in"], moment_II: Tensor) -> Consumer:
        """A layer with one column per channel.

        Raises
        ------
        NonFiniteError
            If weight or moments hold NaN or infinity.
        ShapeError
            If the moments do not fit the weight.
        """
        inputs = weight_OI.shape[1]
        if moment_II.shape != (inputs, inputs):
            raise ShapeError("second moments", found=tuple(moment_II.shape), expected=(inputs, inputs))
        for what, tensor in (("the weight", weight_OI), ("the second moments", moment_II)):
            if not is_finite(tensor):
                raise NonFiniteError(f"{what} hold NaN or infinity")
        return cls(weight_OI, moment_II.to(weight_OI), torch.arange(inputs, device=weight_OI.device)[:, None])

    @cached_property
    def sums(self) -> tuple[Float[Tensor, "channels"], Float[Tensor, "channels"], Float[Tensor, ""]]:
        """The saliency and the energy of each channel, and the energy of the layer, added up over the outputs."""
        saliency_C, energy_C = self.weight_OI.new_zeros(2, len(self.columns_CB))
        output = self.weight_OI.new_zeros(())
        for part_OI in self.weight_OI.split(ROWS):
            saliency_OC, energy_OC, output_O = contributions(part_OI, self.moment_II, self.columns_CB)
            saliency_C += saliency_OC.sum(0)
            energy_C += energy_OC.sum(0)
            output += output_O.sum()
        return saliency_C, energy_C, output


def select_channels(
    weight_OI: Float[Tensor, "out in"],
    moment_II: Float[Tensor, "in in"],
    keep: int,
    *,
    score: Score = "saliency",
    generator: torch.Generator | None = None,
) -> Int[Tensor, "keep"]:
    """Choose the input channels of a linear layer to keep.

    Parameters
    ----------
    weight_OI : Tensor of shape (out, in)
        The weight, in float32 or float64.
    moment_II : Tensor of shape (in, in)
        Second moments of the inputs, ``E[x x^T]``.
    keep : int
        How many channels, 1 to all.
    score : {"saliency", "fidelity", "energy", "greedy", "l2", "random"}, default: "saliency"
        As for :func:`modhifi`.
    generator : torch.Generator, optional
        Draws the random choice.

    Returns
    -------
    Tensor of shape (keep,)
        Indices, ascending.

    Raises
    ------
    HyperparameterError
        If ``keep`` or ``score`` is out of range.
    NonFiniteError, ShapeError
        If the moments hold NaN or infinity, or do not fit the weight.

    Examples
    --------
    >>> moments = torch.tensor([[1.0, 0.5], [0.5, 2.0]])
    >>> select_channels(torch.tensor([[2.0, 1.0]]), moments, 1)
    tensor([0])
    """
    if not 1 <= keep <= weight_OI.shape[1]:
        raise HyperparameterError("keep", found=keep, expected=f"1 to {weight_OI.shape[1]}")
    consumer = Consumer.linear(weight_OI, moment_II)
    return best(channel_scores([consumer], score, count=keep, generator=generator), keep)


def best(score_C: Float[Tensor, "channels"], keep: int) -> Int[Tensor, "keep"]:
    """Return the indices of the highest scores, ascending; of equal scores the first ones."""
    return score_C.sort(descending=True, stable=True).indices[:keep].sort().values


def subset_fidelity(
    weight_OI: Float[Tensor, "out in"], moment_II: Float[Tensor, "in in"], keep: Int[Tensor, "kept"] | Sequence[int]
) -> Float[Tensor, "out"]:
    """Return the share of each output's energy that a subset of the input channels reconstructs at best.

    Parameters
    ----------
    weight_OI, moment_II
        As for :func:`select_channels`.
    keep : Tensor or sequence of int
        Indices of the subset.

    Returns
    -------
    Tensor of shape (out,)
        In [0, 1]: 1 for all channels, 0 for none and for an output without energy.

    Examples
    --------
    >>> moments = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 1.0]])
    >>> subset_fidelity(torch.tensor([[1.0, 1.0, 2.0]]), moments, [0, 1])
    tensor([0.9048])
    """
    consumer = Consumer.linear(weight_OI, moment_II)
    kept = torch.as_tensor(keep, dtype=torch.long, device=weight_OI.device)
    new_OI, _ = reconstruct(weight_OI, _copied(moment_II), kept, ridge=0.0)
    return explained(consumer, new_OI)


def explained(consumer: Consumer, new_OI: Float[Tensor, "out in"]) -> Float[Tensor, "out"]:
    """Return ``1 - E|Y - Y'|^2 / E|Y|^2`` of each output for new weights; 0 where an output has no energy."""
    lost_OI = consumer.weight_OI - new_OI
    energy_O, lost_O = (
        torch.einsum("oi,oi->o", w_OI @ consumer.moment_II, w_OI) for w_OI in (consumer.weight_OI, lost_OI)
    )
    return torch.where(energy_O > 0, 1 - lost_O / energy_O, 0)


def compensate(
    weight_OI: Float[Tensor, "out in"],
    moment_II: Float[Tensor, "in in"],
    keep: Int[Tensor, "kept"] | Sequence[int],
    *,
    ridge: float = RIDGE,
) -> Float[Tensor, "out kept"]:
    """Return the weights on the kept inputs that reconstruct all outputs best, in the least-squares sense.

    Parameters
    ----------
    weight_OI, moment_II
        As for :func:`select_channels`.
    keep : Tensor or sequence of int
        Indices of the inputs to keep, ascending.
    ridge : float, default: 1e-4
        Added to the diagonal of the moments, as a fraction of its mean; >= 0. It shrinks the change, not the weights.

    Raises
    ------
    HyperparameterError
        If ``ridge`` is negative.
    NonFiniteError, ShapeError
        If weight or moments hold NaN or infinity, or do not fit.

    Examples
    --------
    >>> compensate(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.5], [0.5, 2.0]]), [0], ridge=0.0)
    tensor([[2.5000]])
    """
    if not 0 <= ridge < float("inf"):
        raise HyperparameterError("ridge", found=ridge, expected="a number >= 0")
    Consumer.linear(weight_OI, moment_II)  # checks them
    kept = torch.as_tensor(keep, dtype=torch.long, device=weight_OI.device)
    return reconstruct(weight_OI, _copied(moment_II), kept, ridge=ridge)[0][:, kept]


def reconstruct(
    weight_OI: Float[Tensor, "out in"],
    moment_II: Float[Tensor, "in in"],
    kept: Int[Tensor, "kept"],
    *,
    ridge: float = RIDGE,
) -> tuple[Float[Tensor, "out in"], float]:
    r"""Return the new weights, 0 on the inputs that go, and how much of the outputs' energy the change wins back.

    Uses the moments up, of which large ones come only once to memory, and computes in their precision. The change
    :math:`D` solves :math:`D (S_{CC} + \rho I) = L` with :math:`L = W_{\bar C} S_{\bar C C}`. So the energy that is
    lost falls by :math:`2 \langle D, L \rangle - \langle D, D S_{CC} \rangle = \langle D, L + \rho D \rangle`.
    """
    goes_I = torch.ones(weight_OI.shape[1], dtype=torch.bool, device=weight_OI.device)
    goes_I[kept] = False
    gone = goes_I.nonzero().flatten()
    scale = max(float(moment_II.diagonal().double().mean()), torch.finfo(torch.float64).tiny)
    cross_GK = moment_II[gone[:, None], kept]
    factor_KK = _keep(moment_II, kept)
    ridge = damped_factor(factor_KK, ridge, scale, least=1e-12)
    new_OI, gain = torch.zeros_like(weight_OI), 0.0
    for weight_RI, new_RI in zip(weight_OI.split(ROWS), new_OI.split(ROWS), strict=True):
        lost_RK = (weight_RI[:, gone].to(cross_GK) @ cross_GK).double()
        solve_factored(factor_KK, change_RK := lost_RK.clone())
        gain += float(torch.linalg.vecdot(change_RK, lost_RK + ridge * scale * change_RK).sum())
        new_RI.index_copy_(1, kept, (weight_RI[:, kept] + change_RK).to(new_RI))
    return new_OI, gain


def _copied(moment_II: Float[Tensor, "in in"]) -> Float[Tensor, "in in"]:
    return moment_II.double().clone(memory_format=torch.contiguous_format)


def _keep(matrix_II: Float[Tensor, "in in"], kept: Int[Tensor, "kept"]) -> Float[Tensor, "kept kept"]:
    """Move the kept rows and columns, ascending, to the begin of a contiguous matrix's memory."""
    size = len(kept)
    memory = matrix_II.view(-1)[: size * size].view(size, size)
    for part, rows in zip(memory.split(ROWS), kept.split(ROWS), strict=True):  # up, over rows that have been read
        part.copy_(matrix_II[rows[:, None], kept])
    return memory


def channel_scores(
    consumers: Sequence[Consumer],
    score: Score,
    *,
    count: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "channels"]:
    """Score the channels that some layers read, each layer's outputs normalized to energy 1.

    Parameters
    ----------
    consumers : sequence of Consumer
        The layers.
    score : Score
        As for :func:`modhifi`.
    count : int, optional
        The greedy choice ends with this many channels, and the others get 0; all by default.
    generator : torch.Generator, optional
        Draws the random scores.

    Raises
    ------
    HyperparameterError
        As :func:`check_score`.
    """
    check_score(score)
    first = consumers[0].columns_CB
    channels = len(first)
    if score == "random":
        return torch.rand(channels, generator=generator).to(first.device)
    total_C = torch.zeros(channels, dtype=consumers[0].weight_OI.dtype, device=first.device)
    if score == "l2":
        return total_C + sum(c.weight_OI[:, c.columns_CB].square().sum((0, 2)) for c in consumers)
    alive_C = torch.stack([c.moment_II.diagonal()[c.columns_CB].sum(1) for c in consumers]).sum(0) > 0
    if score == "greedy":
        gain_C = _greedy(consumers, channels if count is None else count)
        return gain_C.masked_fill(~alive_C, -torch.inf)
    for c in consumers:
        if score == "fidelity":
            total_C += pair_scores(c.weight_OI, c.moment_II, c.columns_CB, score="fidelity").mean(0)
        else:
            saliency_C, energy_C, output = c.sums
            total_C += (saliency_C if score == "saliency" else energy_C) / _positive(output)
    return total_C.masked_fill(~alive_C, -torch.inf)


def check_score(score: str) -> None:
    """Refuse an unknown score.

    Raises
    ------
    HyperparameterError
        If there is no such score.
    """
    check_choice("score", score, Score)


def _greedy(consumers: Sequence[Consumer], count: int) -> Float[Tensor, "channels"]:
    """The gain in explained energy of each channel in the order chosen; 0 for those that were not chosen."""
    parts = [_Elimination(c) for c in consumers]
    left = torch.arange(len(consumers[0].columns_CB), device=consumers[0].weight_OI.device)
    gain_C = torch.zeros(len(left), dtype=torch.float64, device=left.device)
    waiting = torch.ones_like(left, dtype=torch.bool)
    previous = torch.inf
    for chosen in range(count):
        if chosen and 8 * int(chosen - len(gain_C) + len(left)) >= max(len(left), 4 * PANEL):
            for part in parts:
                part.keep(waiting)
            left, waiting = left[waiting], waiting[waiting]
        now_C = torch.stack([part.gains() for part in parts]).sum(0)
        place = int(now_C.masked_fill(~waiting, -1).argmax())
        waiting[place] = False
        # a gain may exceed the one before it; what is kept first must not score lower
        previous = min(previous, max(float(now_C[place]), 1e-300))
        gain_C[left[place]] = previous
        for part in parts:
            part.eliminate(place)
    return gain_C


class _Elimination:
    """Second moments and explained energy of a layer's inputs, given those already chosen."""

    def __init__(self, consumer: Consumer) -> None:
        self.columns_CB = consumer.columns_CB
        self.t_II = consumer.moment_II.double().clone()
        self.t_II.diagonal().add_(RIDGE * self.t_II.diagonal().mean())
        b_IO = consumer.moment_II.double() @ consumer.weight_OI.double().T
        self.energy = _positive((consumer.weight_OI.double().T * b_IO).sum())
        self.m_II = b_IO @ b_IO.T
        self.floor = 1e-12 * float(self.t_II.diagonal().max())
        first, second = self.columns_CB[:, :, None], self.columns_CB[:, None, :]
        self.t_CBB, self.m_CBB = self.t_II[first, second], self.m_II[first, second]
        self.c_PI, self.q_PI = (self.t_II.new_empty(PANEL, len(self.t_II)) for _ in range(2))
        self.d_P = self.t_II.new_empty(PANEL)
        self.filled = 0
        always = torch.ones(len(self.t_II), dtype=torch.bool)
        always[self.columns_CB.flatten().cpu()] = False
        for column in always.nonzero().flatten().tolist():
            self._eliminate(column)

    def gains(self) -> Float[Tensor, "channels"]:
        """The energy that each channel would explain in addition, as a share of the layer's."""
        if self.columns_CB.shape[1] == 1:
            t_C, m_C = self.t_CBB.flatten(), self.m_CBB.flatten()
            return torch.where(t_C > self.floor, m_C.clamp(min=0) / t_C, 0) / self.energy
        t_CBB = self.t_CBB.clone()
        t_CBB.diagonal(dim1=1, dim2=2).clamp_(min=self.floor or 1.0)
        lower_CBB, failed_C = torch.linalg.cholesky_ex(t_CBB)
        gain_C = torch.cholesky_solve(self.m_CBB, lower_CBB).diagonal(dim1=1, dim2=2).sum(-1)
        return torch.where(failed_C == 0, gain_C.nan_to_num(0.0).clamp(min=0), 0) / self.energy

    def eliminate(self, channel: int) -> None:
        """Take a channel into the chosen ones."""
        for column in self.columns_CB[channel].tolist():
            self._eliminate(column)

    def keep(self, stays_C: Bool[Tensor, "channels"]) -> None:
        """Drop the channels already chosen, whose rows and columns are zero by now."""
        self._update()
        columns_CB = self.columns_CB[stays_C]
        rest = columns_CB.flatten()
        self.t_II, self.m_II = (matrix_II[rest[:, None], rest] for matrix_II in (self.t_II, self.m_II))
        self.t_CBB, self.m_CBB = self.t_CBB[stays_C], self.m_CBB[stays_C]
        self.columns_CB = torch.arange(len(rest), device=rest.device).view(columns_CB.shape)
        self.c_PI, self.q_PI = (self.t_II.new_empty(PANEL, len(rest)) for _ in range(2))

    def _eliminate(self, column: int) -> None:
        p = self.filled
        c_PI, q_PI = self.c_PI[:p], self.q_PI[:p]
        t_I = self.t_II[column] - (self.d_P[:p] * c_PI[:, column]) @ c_PI
        pivot = float(t_I[column])
        if pivot <= self.floor:
            return
        m_I = self.m_II[column] - q_PI[:, column] @ c_PI - c_PI[:, column] @ q_PI
        c_I = t_I / pivot
        q_I = m_I - 0.5 * m_I[column] * c_I
        c_CB, q_CB = c_I[self.columns_CB], q_I[self.columns_CB]
        self.t_CBB -= pivot * c_CB[:, :, None] * c_CB[:, None, :]
        cross_CBB = c_CB[:, :, None] * q_CB[:, None, :]
        self.m_CBB -= cross_CBB + cross_CBB.transpose(1, 2)
        self.c_PI[p], self.q_PI[p], self.d_P[p] = c_I, q_I, pivot
        self.filled += 1
        if self.filled == PANEL:
            self._update()

    def _update(self) -> None:
        """Subtract what the columns eliminated since the last update explain."""
        c_PI, q_PI, d_P = self.c_PI[: self.filled], self.q_PI[: self.filled], self.d_P[: self.filled]
        self.t_II.addmm_(c_PI.T * d_P, c_PI, alpha=-1)
        self.m_II.addmm_(c_PI.T, q_PI, alpha=-1).addmm_(q_PI.T, c_PI, alpha=-1)
        self.filled = 0


def _positive(value: Tensor) -> Tensor:
    return torch.where(value > 0, value, 1)


def warn_of_few_rows(name: str, rows: int, kept: int) -> list[str]:
    """Warn where fewer rows than kept inputs were seen; the warning is returned as a note."""
    if rows >= kept:
        return []
    note = f"layer {name!r} saw {rows} calibration rows for {kept} kept inputs: its new weights rest on the ridge"
    warnings.warn(note, stacklevel=3)
    return [note]
