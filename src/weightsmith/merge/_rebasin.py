"""Match and average two checkpoints on disk, in memory that depends on their largest tensors, not on their size."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from weightsmith.core.errors import HyperparameterError
from weightsmith.core.io import (
    ChunkMap,
    Chunks,
    StoredState,
    TensorSpec,
    check_elementwise,
    check_output,
    map_checkpoints,
    meta_model,
)
from weightsmith.core.linalg import inner_product, upcast
from weightsmith.core.models import example_batch
from weightsmith.core.results import Result, documents, record
from weightsmith.core.symmetry import Permutations, Symmetry, find_symmetry
from weightsmith.core.training import seed_of
from weightsmith.merge._shared.merging import check_two, parent_notes
from weightsmith.merge._weight_matching.matching import Normalize, match_weights
from weightsmith.merge._weight_matching.weight_pair import STALE, check_same_architecture, row_ranges

__all__ = ["rebasin"]


def rebasin(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    alpha: float = 0.5,
    restarts: int = 1,
    normalize: Normalize = "none",
    symmetry: Symmetry | None = None,
    overwrite: bool = False,
    generator: torch.Generator | None = None,
) -> Result:
    """Match one checkpoint's units to another's and average the two on disk (Git Re-Basin).

    The checkpoints stay on disk: weights are read when they are needed, large ones in pieces.

    Parameters
    ----------
    checkpoints : sequence of path
        FIRST SECOND: Hugging Face folders of one architecture, trained separately.
    out : path
        Folder for the average, whose units are in the order of FIRST; element types, config, tokenizer and other small
        files come from SECOND.
    alpha : float, default: 0.5
        Share of SECOND in the average, in [0, 1]; at 1 the result is SECOND, permuted and otherwise unchanged.
    restarts : int, default: 1
        Starts of the search, of which the best is kept.
    normalize : {"none", "layer"}, default: "none"
        Whether each tensor counts by the product of its norms, or all tensors equally.
    symmetry : Symmetry, optional
        The groups that may be permuted; by default traced on the architecture that FIRST's configuration names.
    overwrite : bool, default: False
        Replace what is at ``out``.
    generator : torch.Generator, optional
        Draws the order of the search; seed 0 by default.

    Returns
    -------
    Result
        Per matrix its relative distance before and after; the permutations as a file.

    Raises
    ------
    HyperparameterError
        If there are not two checkpoints, or a number is out of range.
    CheckpointError, NonFiniteError, ShapeError, UnsupportedModelError
        If a checkpoint cannot be read, holds NaN or infinity, is quantized, or the two do not fit; nothing is written.

    References
    ----------
    Ainsworth, Hayase, Srinivasa, arXiv 2209.04836.
    """
    check_two(checkpoints)
    if not 0 <= alpha <= 1:
        raise HyperparameterError("alpha", found=alpha, expected="0 <= alpha <= 1")
    if restarts < 1:
        raise HyperparameterError("restarts", found=restarts, expected=">= 1")
    check_output(out, overwrite=overwrite, inputs=checkpoints)
    with record("rebasin", seed=seed_of(generator), alpha=alpha, restarts=restarts, normalize=normalize) as result:
        result.notes += parent_notes(checkpoints)
        model = meta_model(checkpoints[0]) if symmetry is None else None
        first, second = (StoredState(path, model) for path in checkpoints)
        for path, state in zip(checkpoints, (first, second), strict=True):
            check_elementwise(state.reader.specs, str(path))
        if model is not None:
            symmetry = find_symmetry(model, example_batch(model))
            result.notes.append("The groups of axes were traced without weights, and not verified.")
        assert symmetry is not None
        check_same_architecture(first.specs, second.specs, "the checkpoints")
        found = match_weights(first, second, symmetry, restarts=restarts, normalize=normalize, generator=generator)
        average = _Average(first, second, symmetry, found.perms, alpha)
        sources = [first.reader.renamed(average.first_keys), second.reader]
        if symmetry.has_statistics and 0 < alpha < 1:
            warnings.warn(STALE, stacklevel=2)
            result.notes.append(STALE)
        found.add_to_result(symmetry, result)

        def files() -> dict[str, str]:
            average.add_to_result(result)
            return documents([result], out, checkpoints)

        # one worker: each would hold whole tensors where their rows are permuted
        map_checkpoints(sources, out, average, ranges=average.ranges, workers=1, overwrite=overwrite, files=files)
    return result


class _Average:
    """The map from two checkpoints to the average of the first and the permuted second, and its distances."""

    def __init__(
        self, first: StoredState, second: StoredState, symmetry: Symmetry, perms: Permutations, alpha: float
    ) -> None:
        self.specs, self.symmetry, self.perms, self.alpha = second.reader.specs, symmetry, perms, alpha
        names = {key: name for name, key in reversed(second.keys_of.items())}
        self.names = {key: names.get(key, key) for key in self.specs}
        self.first_keys = {key: first.keys_of[name] for key, name in self.names.items() if name in first}
        self.squares: dict[str, Tensor] = {}

    def __call__(self, key: str, chunks: Chunks) -> ChunkMap | None:
        spec, own = self.specs[key], self._own(key)
        if key not in self.first_keys or not spec.dtype.is_floating_point:
            return None
        squares = self.squares[key] = torch.zeros(3, dtype=torch.float64)

        def chunk_map(parts: Sequence[Tensor], out: Tensor) -> Tensor:
            a, b = (part.view(-1, *spec.shape[1:]) if spec.shape else part.view(()) for part in parts)
            moved = self.symmetry.permute_tensor(own, b, self.perms)
            start = upcast(a)
            squares[0] += inner_product(start, start)
            for i, other in ((1, b), (2, moved)):
                difference = start - other.to(start)
                squares[i] += inner_product(difference, difference)
            if self.alpha == 1:
                return moved.reshape(-1)
            return out.copy_(torch.lerp(start, moved.to(start), self.alpha).view(-1))

        return chunk_map

    def ranges(self, key: str, spec: TensorSpec) -> Iterator[tuple[int, int]]:
        """Iterate over the first and last element of each piece: rows, or the whole where they are permuted."""
        own = self._own(key)
        if own not in self.symmetry.shapes or not spec.shape:
            yield 0, spec.numel
            return
        each = spec.numel // max(spec.shape[0], 1)
        for begin, end in row_ranges(self.symmetry, own):
            yield begin * each, end * each

    def add_to_result(self, result: Result) -> None:
        """Add the relative distance of every permuted matrix before and after."""
        for key, squares in self.squares.items():
            own = self._own(key)
            if own in self.symmetry.axes and own not in self.symmetry.buffers and len(self.specs[key].shape) > 1:
                size, before, after = squares.sqrt().tolist()
                size = max(size, torch.finfo(torch.float32).tiny)
                result.layer(self.names[key], distance_before=before / size, distance_after=after / size)

    def _own(self, key: str) -> str:
        """The name under which the symmetry knows a stored tensor."""
        return self.symmetry.aliases.get(self.names[key], self.names[key])
