"""Which of many values are smallest or largest, exactly and in order of equal ones: masks per row, N:M, top-k, streams.

Legend: ``O`` rows, ``I`` columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from weightsmith.core.errors import HyperparameterError, ShapeError

__all__ = ["falling_order", "keep_", "kth_largest", "kth_smallest", "largest_k", "lowest_k_mask", "lowest_n_of_m_mask"]

SAMPLE = 1 << 14
"""Values that :func:`largest_k` uses to estimate its threshold."""

HALF = 1 << 16
HISTOGRAM_PIECE = 1 << 22
"""Values that :func:`kth_largest` counts at a time."""


BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CONVERTED = 1 << 17
"""Values whose mask :func:`keep_` converts at a time."""
COMPARED = 16
"""Longest run of an N:M pattern whose values are compared in pairs."""
PARTITIONED = 1 << 20
"""Values that numpy copies at a time and thread."""


def lowest_k_mask(score_OI: Float[Tensor, "out in"], k: int) -> Bool[Tensor, "out in"]:
    """Mark the ``k`` lowest scores of every row; of equal scores the first ones, as a stable sort would.

    Examples
    --------
    >>> lowest_k_mask(torch.tensor([[3.0, 1.0, 1.0, 1.0]]), 2)
    tensor([[False,  True,  True, False]])
    """
    if k <= 0 or score_OI.numel() == 0:
        return torch.zeros_like(score_OI, dtype=torch.bool)
    bound_O1 = kth_smallest(score_OI, k)[:, None]
    mask_OI = score_OI <= bound_O1
    surplus_O = _row_counts(mask_OI) - k
    if bool((surplus_O > 0).any()):
        # Of the scores that equal their row's bound the last ones are taken out again.
        equal = _places(score_OI == bound_O1)
        row = equal // score_OI.shape[1]
        ends_O = row.bincount(minlength=len(score_OI)).cumsum(0)
        after = ends_O[row] - 1 - torch.arange(len(row), device=row.device)
        last = after < surplus_O[row]
        mask_OI[row[last], equal[last] % score_OI.shape[1]] = False
    return mask_OI


def _row_counts(mask_OI: Bool[Tensor, "out in"]) -> Int[Tensor, "out"]:
    if mask_OI.device.type != "cpu":
        return mask_OI.count_nonzero(dim=1)
    return torch.from_numpy(np.count_nonzero(mask_OI.numpy(), axis=1))


def _places(mask: Bool[Tensor, "..."]) -> Int[Tensor, "places"]:
    """Flat indices of what is marked."""
    if mask.device.type != "cpu":
        return mask.flatten().nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def lowest_n_of_m_mask(score_OI: Float[Tensor, "out in"], n: int, m: int) -> Bool[Tensor, "out in"]:
    """Mark the ``n`` lowest scores in each run of ``m`` consecutive columns; of equal scores the first ones.

    Raises
    ------
    ShapeError
        If the number of columns is not a multiple of ``m``.

    Examples
    --------
    >>> lowest_n_of_m_mask(torch.tensor([[4.0, 1.0, 2.0, 3.0]]), 2, 4)
    tensor([[False,  True,  True, False]])
    """
    rows, columns = score_OI.shape
    if columns % m:
        raise ShapeError(f"columns for a {n}:{m} pattern", found=columns, expected=f"a multiple of {m}")
    if m > COMPARED:
        return lowest_k_mask(score_OI.reshape(-1, m), n).reshape(rows, columns)
    runs = score_OI.reshape(-1, m).T.contiguous()
    rank = torch.zeros_like(runs, dtype=torch.int8)
    for first in range(m):
        for second in range(first + 1, m):
            in_order = runs[first] <= runs[second]
            rank[second] += in_order
            rank[first] += ~in_order
    return (rank < n).T.reshape(rows, columns)


def kth_smallest(score_OI: Float[Tensor, "out in"], k: int) -> Float[Tensor, "out"]:
    """The ``k``-th smallest value of every row, for ``k`` from 1 to the number of columns.

    On a CPU numpy partitions the rows with its vector instructions, which takes a tenth of the time of
    ``torch.kthvalue``.

    Examples
    --------
    >>> kth_smallest(torch.tensor([[3.0, 1.0, 2.0]]), 2)
    tensor([2.])
    """
    if score_OI.device.type != "cpu" or score_OI.dtype not in (torch.float32, torch.float64):
        return score_OI.kthvalue(k, dim=1).values
    scores = score_OI.detach().numpy()
    found = np.empty(len(scores), scores.dtype)

    def partition(rows: slice) -> None:
        found[rows] = np.partition(scores[rows], k - 1, axis=1)[:, k - 1]

    _in_pieces(partition, *scores.shape)
    return torch.from_numpy(found)


def falling_order(key_NC: Float[Tensor, "rows classes"]) -> Int[Tensor, "rows classes"]:
    """Columns of every row from the largest key to the smallest; of equal keys the first comes first, NaN before all.

    On a CPU keys and columns are packed into whole numbers, which numpy sorts with its vector instructions: a fifth of
    the time of a stable ``argsort``.

    Examples
    --------
    >>> falling_order(torch.tensor([[1.0, 3.0, 2.0, 3.0]]))
    tensor([[1, 3, 2, 0]])
    """
    if key_NC.device.type != "cpu" or key_NC.dtype == torch.float64:
        return key_NC.argsort(dim=1, descending=True, stable=True)
    keys = (key_NC.detach().float() + 0.0).numpy()  # there is one zero only
    if keys.size and np.isnan(keys.max()):
        keys[np.isnan(keys)] = np.nan  # and one NaN: that of 0 / 0 has a sign
    found = np.empty(keys.shape, np.int64)
    columns = np.arange(keys.shape[1], dtype=np.int64)

    def sort(rows: slice) -> None:
        bits = keys[rows].view(np.int32)
        rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # in the order of the numbers
        packed = (~rising).astype(np.int64) << 32 | columns
        packed.sort(axis=1)
        np.bitwise_and(packed, 0xFFFFFFFF, out=found[rows])

    _in_pieces(sort, *keys.shape)
    return torch.from_numpy(found)


def _in_pieces(run: Callable[[slice], None], rows: int, columns: int) -> None:
    """Run a function of numpy on some rows at a time, in torch's number of threads."""
    step = max(1, PARTITIONED // max(columns, 1))
    pieces = [slice(start, start + step) for start in range(0, rows, step)]
    if len(pieces) > 1 and torch.get_num_threads() > 1:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # numpy lets other threads run meanwhile
            list(threads.map(run, pieces))
    else:
        for piece in pieces:
            run(piece)


def keep_(values: Shaped[Tensor, "..."], kept: Bool[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Set floating-point values that are not marked to zero in place, NaN and infinite ones too.

    Their bits are multiplied as whole numbers, in pieces: a mask of the size of the values, converted to their type,
    would not stay in a CPU's cache. That takes a fifth of the time of ``masked_fill_``.

    Parameters
    ----------
    values : Tensor
        Of floating point and any shape; changed in place.
    kept : Tensor
        Boolean, of the same shape.

    Returns
    -------
    Tensor
        ``values``.

    Examples
    --------
    >>> keep_(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([True, False, True]))
    tensor([1., 0., 3.])
    """
    bits = values.view(BITS[values.element_size()])
    if bits.is_contiguous() and kept.is_contiguous():
        bits, kept = bits.view(-1), kept.view(-1)
    rows = max(1, CONVERTED // max(1, bits[:1].numel())) if bits.device.type == "cpu" else len(bits)
    for piece, mask in zip(bits.split(rows), kept.split(rows), strict=True):
        piece.mul_(mask.to(piece.dtype))
    return values


def largest_k(values: Shaped[Tensor, "..."], k: int) -> Int[Tensor, "k"]:
    """Flat indices of the ``k`` values of largest magnitude, ascending; of equal magnitudes the first ones.

    Exact, and several times faster than ``torch.topk`` over all values: a threshold estimated from a sample leaves few
    candidates to sort.

    Parameters
    ----------
    values : Tensor
        Any shape, finite.
    k : int
        0 to ``values.numel()``.

    Returns
    -------
    Tensor of shape (k,)
        Row-major indices, int64, exactly ``k`` of them.

    Raises
    ------
    HyperparameterError
        If ``k`` is out of range.

    Examples
    --------
    >>> largest_k(torch.tensor([[1.0, -3.0], [2.0, -2.0]]), 2)
    tensor([1, 2])
    """
    size = values.numel()
    if not 0 <= k <= size:
        raise HyperparameterError("k", found=k, expected=f"0 to {size}")
    if k in (0, size):
        return torch.arange(k, device=values.device)
    magnitude = values.abs().flatten()
    candidates = _candidates(magnitude, k)
    of_candidates = magnitude[candidates]
    bound = kth_smallest(of_candidates[None], len(of_candidates) - k + 1)
    kept = of_candidates >= bound
    if int(kept.sum()) > k:
        above, equal = of_candidates > bound, of_candidates == bound
        kept = above | (equal & (equal.cumsum(0) <= k - above.sum()))
    return candidates[kept]


def kth_largest(
    parts: Callable[[], Iterable[Sequence[Float[Tensor, "..."]]]], k: Callable[[int], int]
) -> list[tuple[float, int]]:
    """Find the ``k``-th largest of many numbers that are read in parts, exactly and without sorting.

    Two passes over the bit patterns, which for numbers >= 0 are in the order of the numbers: counts of the upper 16
    bits find the bin, counts of the lower 16 bits in it the number. Memory is 1 MB beside the parts.

    Parameters
    ----------
    parts : callable
        ``parts()`` iterates over the parts of one or several streams of numbers, float32 and >= 0; it is called twice.
    k : callable
        From the length of a stream to ``k``, 0 to that length.

    Returns
    -------
    list of tuple
        Per stream the ``k``-th largest number, infinity for ``k = 0``, and how many numbers equal to it are among the
        ``k`` largest.

    Raises
    ------
    HyperparameterError
        If ``k`` is out of range.

    Examples
    --------
    >>> kth_largest(lambda: [[torch.tensor([3.0, 1.0])], [torch.tensor([2.0, 2.0, 2.0])]], lambda size: 3)
    [(2.0, 2)]
    """
    upper = _histograms(parts, lambda bits, _: bits >> 16)
    sizes = [int(counts.sum()) for counts in upper]
    places = [k(size) for size in sizes]
    for place, size in zip(places, sizes, strict=True):
        if not 0 <= place <= size:
            raise HyperparameterError("k", found=place, expected=f"0 to {size}")
    tops = [_bin_of(counts, place) for counts, place in zip(upper, places, strict=True)]
    lower = _histograms(parts, lambda bits, n: bits[bits >> 16 == tops[n][0]] & (HALF - 1))
    found = []
    for (top, left), counts in zip(tops, lower, strict=True):
        if not left:
            found.append((float("inf"), 0))
            continue
        bottom, equal = _bin_of(counts, left)
        bits = torch.tensor(HALF * top + bottom, dtype=torch.int32)
        found.append((bits.view(torch.float32).item(), equal))
    return found


def _histograms(
    parts: Callable[[], Iterable[Sequence[Tensor]]], digits: Callable[[Tensor, int], Tensor]
) -> list[Int[Tensor, "bins"]]:
    total: list[Tensor] = []
    for streams in parts():
        counts = []
        for n, stream in enumerate(streams):
            pieces = stream.detach().flatten().split(HISTOGRAM_PIECE)
            each = [digits(piece.view(torch.int32), n).bincount(minlength=HALF) for piece in pieces]
            counts.append(torch.stack(each).sum(0).cpu())
        total = [a + b for a, b in zip(total, counts, strict=True)] if total else counts
    return total


def _bin_of(counts: Int[Tensor, "bins"], k: int) -> tuple[int, int]:
    """The bin of the ``k``-th largest, and its place among those of the bin."""
    above = counts.flip(0).cumsum(0)
    place = min(int((above < k).sum()), len(above) - 1)
    return len(above) - 1 - place, k - (int(above[place - 1]) if place else 0)


def _candidates(magnitude: Float[Tensor, "size"], k: int) -> Int[Tensor, "candidates"]:
    """Indices of at least the ``k`` largest, in order, and usually few more."""
    stride = (len(magnitude) // SAMPLE) | 1  # odd: seldom in step with the rows of a matrix
    sample = magnitude[::stride]
    share = k / len(magnitude) * len(sample)
    keep = min(int(share + 4 * share**0.5) + 1, len(sample))
    candidates = _places(magnitude >= sample.topk(keep, sorted=False).values.min())
    return candidates if len(candidates) >= k else torch.arange(len(magnitude), device=magnitude.device)
