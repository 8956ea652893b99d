r"""A linear-chain conditional random field as a layer: emissions and a mask to a loss, labels or marginals.

.. math::

    s(x, y) = \sum_t e_t[y_t] + \sum_{t>0} T[y_{t-1}, y_t], \qquad
    \log Z = \operatorname{logsumexp}_y s(x, y), \qquad L = \log Z - s(x, y)

Lafferty, McCallum and Pereira (2001). :math:`\log Z` is the forward recursion
:math:`\alpha_t[j] = e_t[j] + \operatorname{logsumexp}_i(\alpha_{t-1}[i] + T[i, j])`; marginals are its gradient with
respect to the emissions; decoding replaces the sum by the maximum (Viterbi).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from weightsmith.core.choices import check_choice
from weightsmith_kitchen.errors import RecipeError

__all__ = ["LinearChainCRF"]

Reduction = Literal["none", "mean", "sum"]


class LinearChainCRF(nn.Module):
    """Scores, labels and marginals of label sequences, for any model that gives a score per token and label.

    On a Hugging Face token classifier pass its ``logits``, and as mask the tokens that are labeled (``labels != -100``:
    usually the first piece of each word). Masked tokens are left out of the chain: the labels before and after one
    are neighbors.

    Parameters
    ----------
    labels : int
        Number of labels, at least 2.

    Attributes
    ----------
    transitions : Parameter, shape (labels, labels)
        ``transitions[i, j]`` scores label j right after label i; zero at first.

    Raises
    ------
    RecipeError
        If there are fewer than two labels, or if emissions, tags and mask do not fit together.

    Examples
    --------
    >>> crf = LinearChainCRF(2)
    >>> with torch.no_grad():
    ...     _ = crf.transitions.copy_(torch.tensor([[0.2, -0.1], [0.3, 0.0]]))
    >>> emissions = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]])
    >>> crf.decode(emissions)
    [[0, 1, 0]]
    >>> round(crf(emissions, torch.tensor([[0, 1, 0]])).item(), 4)
    1.2666
    """

    def __init__(self, labels: int) -> None:
        super().__init__()
        if labels < 2:
            raise RecipeError("labels of the CRF", found=labels, expected="at least 2")
        self.transitions = nn.Parameter(torch.zeros(labels, labels))

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"labels={len(self.transitions)}"

    def forward(
        self,
        emissions: Float[Tensor, "batch steps labels"],
        tags: Int[Tensor, "batch steps"],
        mask: Bool[Tensor, "batch steps"] | None = None,
        *,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Negative log-likelihood of the tags.

        Parameters
        ----------
        emissions : Tensor
            Score of every label at every token.
        tags : Tensor
            Labels; what they are where the mask is False does not matter.
        mask : Tensor, optional
            Which tokens count; all by default.
        reduction : {"mean", "sum", "none"}, default: "mean"
            Over the phrases.

        Returns
        -------
        Tensor
            One number, or one per phrase.
        """
        check_choice("reduction", reduction, Reduction)
        mask = self._checked(emissions, mask)
        if tags.shape != emissions.shape[:2]:
            raise RecipeError("tags", found=tuple(tags.shape), expected=tuple(emissions.shape[:2]))
        used = tags[mask]
        if used.numel() and (int(used.min()) < 0 or int(used.max()) >= len(self.transitions)):
            raise RecipeError(
                "tags where the mask is True",
                found=f"{int(used.min())} to {int(used.max())}",
                expected=f"0 to {len(self.transitions) - 1}",
                do="Mask what is padding (-100).",
            )
        emissions, mask, order = _packed(emissions, mask)
        tags = tags.gather(1, order).where(mask, torch.zeros_like(tags))
        loss = self._log_partition(emissions, mask) - self._score(emissions, tags, mask)
        if reduction == "none":
            return loss
        return loss.sum() if reduction == "sum" else loss.mean()

    def log_partition(
        self, emissions: Float[Tensor, "batch steps labels"], mask: Bool[Tensor, "batch steps"] | None = None
    ) -> Float[Tensor, "batch"]:
        """Logarithm of the sum of exp(score) over all label sequences; 0 for a phrase without tokens."""
        emissions, mask, _ = _packed(emissions, self._checked(emissions, mask))
        return self._log_partition(emissions, mask)

    def marginals(
        self, emissions: Float[Tensor, "batch steps labels"], mask: Bool[Tensor, "batch steps"] | None = None
    ) -> Float[Tensor, "batch steps labels"]:
        """Probability of every label at every token; 0 where the mask is False."""
        with torch.enable_grad():
            leaf = emissions.detach().requires_grad_()
            total = self.log_partition(leaf, mask).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
        return gradient

    @torch.no_grad()
    def decode(
        self, emissions: Float[Tensor, "batch steps labels"], mask: Bool[Tensor, "batch steps"] | None = None
    ) -> list[list[int]]:
        """The most probable labels of each phrase, one per token that counts (Viterbi)."""
        emissions, mask, _ = _packed(emissions, self._checked(emissions, mask))
        best, pointers = emissions[:, 0], []
        for step in range(1, emissions.shape[1]):
            top, back = (best[:, :, None] + self.transitions).max(1)
            pointers.append(back)
            best = torch.where(mask[:, step, None], top + emissions[:, step], best)
        counts = mask.sum(1).tolist()
        last = best.argmax(1).tolist()
        rows = torch.stack(pointers, 1).tolist() if pointers else [[] for _ in counts]
        found = []
        for count, label, back in zip(counts, last, rows, strict=True):
            path = [label] if count else []
            for step in range(count - 2, -1, -1):
                path.append(back[step][path[-1]])
            found.append(path[::-1])
        return found

    def _checked(self, emissions: Tensor, mask: Tensor | None) -> Tensor:
        if emissions.ndim != 3 or emissions.shape[2] != len(self.transitions) or not emissions.shape[1]:
            expected = f"(batch, steps >= 1, {len(self.transitions)})"
            raise RecipeError("emissions", found=tuple(emissions.shape), expected=expected)
        if mask is None:
            return torch.ones(emissions.shape[:2], dtype=torch.bool, device=emissions.device)
        if mask.shape != emissions.shape[:2]:
            raise RecipeError("mask", found=tuple(mask.shape), expected=tuple(emissions.shape[:2]))
        return mask.bool()

    def _log_partition(self, emissions: Tensor, mask: Tensor) -> Tensor:
        alpha = emissions[:, 0]
        for step in range(1, emissions.shape[1]):
            longer = torch.logsumexp(alpha[:, :, None] + self.transitions, 1) + emissions[:, step]
            alpha = torch.where(mask[:, step, None], longer, alpha)
        total = torch.logsumexp(alpha, 1)
        return torch.where(mask[:, 0], total, torch.zeros_like(total))

    def _score(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        local = emissions.gather(2, tags[:, :, None])[:, :, 0]
        moves = self.transitions[tags[:, :-1], tags[:, 1:]]
        return (local * mask).sum(1) + (moves * mask[:, 1:]).sum(1)


def _packed(emissions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that count moved to the front, their mask, and where each came from."""
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
    return emissions.gather(1, order[:, :, None].expand_as(emissions)), mask.gather(1, order), order
