"""DSnoT's unstructured loop as the paper's code runs it, one row and one cycle at a time: the tests' and the
benchmark's yardstick. Sorted lists, pointers into them, no check that a list is exhausted."""

import torch
from torch import Tensor


def reference_mask(
    weight: Tensor,
    pruned: Tensor,
    total: Tensor,
    squares: Tensor,
    variance: Tensor,
    *,
    cycles: int = 50,
    tolerance: float = 0.1,
) -> Tensor:
    """Refine a mask (True = removed); ``total``, ``squares`` and ``variance`` are the statistics of the inputs."""
    pruned = pruned.clone()
    contribution = weight * total
    wanda = weight.abs() * squares.sqrt()
    error = (contribution * pruned).sum(1)
    grow_order = torch.where(pruned, contribution / variance, 0.0).sort(dim=1, stable=True).indices
    cost = wanda.masked_fill(pruned, torch.inf)
    drop_negative = cost.masked_fill(contribution >= 0, torch.inf).sort(dim=1, stable=True).indices
    drop_positive = cost.masked_fill(contribution <= 0, torch.inf).sort(dim=1, stable=True).indices
    for row in range(len(weight)):
        low = high = negative = positive = 0
        for _ in range(cycles):
            if abs(error[row]) <= tolerance:
                break
            if error[row] > 0:
                grown, dropped = grow_order[row, -1 - high], drop_negative[row, negative]
                high, negative = high + 1, negative + 1
            else:
                grown, dropped = grow_order[row, low], drop_positive[row, positive]
                low, positive = low + 1, positive + 1
            error[row] += contribution[row, dropped] - contribution[row, grown]
            pruned[row, grown], pruned[row, dropped] = False, True
    return pruned
