"""DSnoT's unstructured loop the way the paper's code runs it: the yardstick of the tests and of the benchmark.

Full stable sorts, the sorted contributions copied in float64, and for every cycle a step of all rows with pointers
into the sorted lists; no check that a list is exhausted.
"""

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
    error = (contribution * pruned).sum(1, keepdim=True)

    score = (contribution / variance).masked_fill(~pruned, 0.0)
    grow_order = score.sort(dim=1, stable=True).indices
    grow_values = contribution.double().gather(1, grow_order)

    cost = wanda.masked_fill(pruned, torch.inf)
    orders, values = [], []
    for wrong_sign in (contribution >= 0, contribution <= 0):
        order = cost.masked_fill(wrong_sign, torch.inf).sort(dim=1, stable=True).indices
        orders.append(order)
        values.append(contribution.double().gather(1, order))

    rows = len(weight)
    low, high = torch.zeros(rows, 1, dtype=torch.long), torch.full((rows, 1), weight.shape[1] - 1)
    pointers = [torch.zeros(rows, 1, dtype=torch.long), torch.zeros(rows, 1, dtype=torch.long)]
    for _ in range(cycles):
        active = error.abs() > tolerance
        if not active.any():
            break
        positive = error > 0
        grow_at = torch.where(positive, high, low)
        grown, grown_value = grow_order.gather(1, grow_at), grow_values.gather(1, grow_at)
        dropped = torch.where(positive, orders[0].gather(1, pointers[0]), orders[1].gather(1, pointers[1]))
        dropped_value = torch.where(positive, values[0].gather(1, pointers[0]), values[1].gather(1, pointers[1]))
        pruned.scatter_(1, grown, torch.where(active, False, pruned.gather(1, grown)))
        pruned.scatter_(1, dropped, torch.where(active, True, pruned.gather(1, dropped)))
        error = torch.where(active, error - (grown_value - dropped_value).float(), error)
        high -= (active & positive).long()
        low += (active & ~positive).long()
        pointers[0] += (active & positive).long()
        pointers[1] += (active & ~positive).long()
    return pruned
