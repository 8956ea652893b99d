"""The bottleneck on features: keys by moving averages, codes by chunked search, values by closed-form gradients.

Legend: ``N`` samples, ``D`` features, ``C`` codebooks, ``J`` pairs, ``K`` key dimensions, ``O`` classes.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.choices import check_choice, check_whole
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.linalg import is_finite
from weightsmith.core.models import evaluation_mode
from weightsmith.core.processes import all_reduce_sum, broadcast_first
from weightsmith.core.progress import track
from weightsmith.core.training import check_labels, modes_restored

__all__ = ["DiscreteKeyValueBottleneck"]

Splitter = Literal["random_projection", "chunk"]
Start = Literal["samples", "kmeans", "normal"]

BLOCK, BLOCK_ON_GPU = 2**18, 2**26
"""Distances that are in memory at once: those of a CPU stay in its cache."""

ROWS = 1024
"""Samples that are projected at once."""

KMEANS_ROUNDS = 10


class DiscreteKeyValueBottleneck(nn.Module):
    """A classifier on features that learns classes one after another without forgetting.

    Parameters
    ----------
    in_features : int
        Features per sample.
    num_classes : int
        Outputs; :meth:`add_classes` adds more. Samples of the only class there is teach nothing: where
        classes come one by one, count those that will come.
    codebooks : int, default: 256
        Independent projections of the features, each with keys of its own.
    pairs : int, default: 4096
        Keys, and values, of each codebook.
    key_dim : int, default: 14
        Dimensions of a key.
    splitter : {"random_projection", "chunk"}, default: "random_projection"
        Project the features on random directions of length 1, or cut them into ``codebooks`` pieces of ``key_dim``.
    decay : float, default: 0.95
        Of the moving averages that place the keys, in [0, 1).
    eps : float, default: 1e-5
        Smooths the sizes of the clusters.
    dead_factor : float, default: 0.1
        A key is replaced by a sample if its average count falls below this share of the count that equal use would
        give, ``rows / pairs``; 0 replaces none.
    generator : torch.Generator, optional
        Draws the projection and the keys.

    Attributes
    ----------
    values : nn.Parameter of shape (codebooks * pairs, num_classes)
        The only parameter.
    keys, averages, sizes, counts : Tensor
        Buffers: the keys; the sums and counts their moving averages are made of; how often each pair was trained.

    Raises
    ------
    HyperparameterError
        If an option is out of range.
    ShapeError
        If pieces of the features do not make up all of them.

    Notes
    -----
    Everything is computed in float32 or better, whatever the features' type. In evaluation mode only pairs that were
    trained are looked up; a codebook without any does not vote. Memory grows as ``codebooks * pairs * (key_dim +
    num_classes)``: 25 million numbers at the default size and 10 classes.

    References
    ----------
    Traeuble et al., arXiv 2207.11240.

    Examples
    --------
    >>> x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    >>> y = (x[:, 0] > 0).long()
    >>> bottleneck = DiscreteKeyValueBottleneck(8, 2, codebooks=16, pairs=16, key_dim=4)
    >>> bottleneck.init_keys(x)
    >>> for label in (0, 1):  # one class after the other
    ...     bottleneck.partial_fit(x[y == label], y[y == label], epochs=20)
    >>> (bottleneck.predict(x) == y).float().mean().item() > 0.8
    True
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        codebooks: int = 256,
        pairs: int = 4096,
        key_dim: int = 14,
        splitter: Splitter = "random_projection",
        decay: float = 0.95,
        eps: float = 1e-5,
        dead_factor: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        in_features, num_classes = check_whole("in_features", in_features), check_whole("num_classes", num_classes)
        codebooks, pairs = check_whole("codebooks", codebooks), check_whole("pairs", pairs)
        key_dim = check_whole("key_dim", key_dim)
        check_choice("splitter", splitter, Splitter)
        if splitter == "chunk" and in_features != codebooks * key_dim:
            found = f"{in_features} features for {codebooks} codebooks of {key_dim}"
            raise ShapeError("pieces of the features", found=found, expected=f"{codebooks * key_dim} features")
        for name, number, bound in (("decay", decay, 1.0), ("eps", eps, math.inf), ("dead_factor", dead_factor, 1.0)):
            if not 0 <= number < bound:
                raise HyperparameterError(name, found=number, expected=f"0 <= {name} < {bound:g}")
        self.in_features, self.num_classes = in_features, num_classes
        self.codebooks, self.pairs, self.key_dim, self.splitter = codebooks, pairs, key_dim, splitter
        self.decay, self.eps, self.dead_factor = decay, eps, dead_factor
        if splitter == "random_projection":
            projection = torch.randn(in_features, codebooks * key_dim, generator=generator)
            self.register_buffer("projection", functional.normalize(projection, dim=0))
        keys = torch.randn(codebooks, pairs, key_dim, generator=generator)
        self.register_buffer("keys", keys)
        self.register_buffer("averages", keys.clone())
        self.register_buffer("sizes", torch.zeros(codebooks, pairs))
        self.register_buffer("counts", torch.zeros(codebooks, pairs, dtype=torch.long))
        self.register_buffer("placed", torch.tensor(False))
        self.values = nn.Parameter(torch.zeros(codebooks * pairs, num_classes))

    projection: Tensor
    keys: Tensor
    averages: Tensor
    sizes: Tensor
    counts: Tensor
    placed: Tensor

    def extra_repr(self) -> str:
        """Say the sizes."""
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, codebooks={self.codebooks}, "
            f"pairs={self.pairs}, key_dim={self.key_dim}, splitter={self.splitter!r}"
        )

    def forward(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N O"]:
        """Return the mean over codebooks of the values of the nearest keys.

        In training mode every pair is looked up, and those that were are counted; a loss of the result trains
        ``values`` in any loop. With ``torch.distributed``, those of all processes are counted.
        """
        codes = self.encode(features)
        if self.training and torch.is_grad_enabled():
            self._count(codes, everywhere=True)
        return self.look_up(codes)

    def look_up(self, codes: Integer[Tensor, "N C"]) -> Float[Tensor, "N O"]:
        """Return the logits of codes: an embedding bag over the values."""
        rows_NC = self._rows(codes)
        if not self.training:
            voting_C = self.counts.any(1)
            if not bool(voting_C.any()):
                warnings.warn("no pair has been trained: all logits are zero", stacklevel=2)
                return self.values.new_zeros(len(codes), self.num_classes)
            rows_NC = rows_NC[:, voting_C]
        return functional.embedding_bag(rows_NC, self.values, mode="mean")

    @torch.no_grad()
    def predict(self, features: Float[Tensor, "N D"]) -> Integer[Tensor, "N"]:
        """Return the class of each sample, of the pairs that were trained."""
        return self._trained_only(features).argmax(1)

    @torch.no_grad()
    def predict_proba(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N O"]:
        """Return the class probabilities of each sample, of the pairs that were trained."""
        return self._trained_only(features).softmax(1)

    @torch.no_grad()
    def encode(self, features: Float[Tensor, "N D"]) -> Integer[Tensor, "N C"]:
        """Return the nearest key of each codebook: in evaluation mode of those that were trained, else of all.

        Of equal distances the first key is taken. Codes are 16 bits wide, or 32 for more than 65536 pairs: compute
        them once in training mode and train on them.

        Raises
        ------
        CalibrationError
            If the keys have not been placed.
        NonFiniteError
            If a feature is NaN or infinite.
        ShapeError
            If there are more or fewer features.
        """
        if not bool(self.placed):
            raise CalibrationError("the keys have not been placed", do="Call init_keys(features) first.")
        trained = None if self.training else self.counts > 0
        narrow = torch.uint16 if self.pairs <= 2**16 else torch.int32
        heads = (self._heads(part) for part in self._checked(features).split(ROWS))
        found = [nearest(part, self.keys.float(), trained).to(narrow) for part in heads]
        return torch.cat(found) if found else torch.empty(0, self.codebooks, dtype=narrow)

    @torch.no_grad()
    def init_keys(
        self,
        features: Float[Tensor, "N D"],
        *,
        passes: int = 10,
        batch_size: int = 256,
        start: Start = "samples",
        generator: torch.Generator | None = None,
    ) -> None:
        """Place the keys where features are, without labels, and freeze them. All values become zero.

        Parameters
        ----------
        features : Tensor of shape (N, D)
            Of unlabeled data. They need not be of the tasks that follow.
        passes : int, default: 10
            Passes of moving averages over them.
        batch_size : int, default: 256
            Samples per update.
        start : {"samples", "kmeans", "normal"}, default: "samples"
            The first keys: random samples, their k-means, or the standard normal keys of the constructor, as in the
            paper's code.
        generator : torch.Generator, optional
            Draws the samples and their order.

        Raises
        ------
        CalibrationError
            If there are no features.
        HyperparameterError
            If an option is out of range.
        NonFiniteError
            If a feature is NaN or infinite.

        Warns
        -----
        UserWarning
            If there are fewer distinct samples than keys of a codebook, or values were trained with the old keys.

        Notes
        -----
        With ``torch.distributed``, each process has samples of its own, as many as the others. Sums are added up; the
        projection, the first keys and those that replace dead ones are those of the first process.
        """
        if not len(features):
            raise CalibrationError("no features to place keys at", expected="at least one sample")
        for name, value, least in (("passes", passes, 0), ("batch_size", batch_size, 1)):
            if value < least:
                raise HyperparameterError(name, found=value, expected=f">= {least}")
        check_choice("start", start, Start)
        features = self._checked(features)
        distinct = len(features.unique(dim=0)) if len(features) < 4 * self.pairs else self.pairs
        if distinct < self.pairs:
            warnings.warn(f"{distinct} distinct samples for {self.pairs} keys: some keys are equal", stacklevel=2)
        if bool(self.counts.any()):
            warnings.warn("all that was learned with the old keys is erased", stacklevel=2)
        held = {name: value.clone() for name, value in self.state_dict().items() if name != "projection"}
        try:
            self.placed.fill_(False)
            self.sizes.zero_()
            broadcast_first(self.keys, *([self.projection] if self.splitter == "random_projection" else []))
            if start != "normal":
                self._start_at(features, start == "kmeans", batch_size, generator)
            self.averages.copy_(self.keys * (1 if start == "normal" else self.sizes[..., None]))
            for _ in track(range(passes), "placing keys"):
                for rows in torch.randperm(len(features), generator=generator).split(batch_size):
                    self.update_keys(features[rows.to(features.device)], generator=generator)
            self.counts.zero_()
            self.values.zero_()
            self.placed.fill_(True)
        except BaseException:
            for name, value in held.items():
                self.state_dict()[name].copy_(value)
            raise

    @torch.no_grad()
    def update_keys(self, features: Float[Tensor, "N D"], *, generator: torch.Generator | None = None) -> None:
        """Take one step of the moving averages; :meth:`init_keys` does this for all of its batches.

        Raises
        ------
        CalibrationError
            If the keys are frozen.
        """
        if bool(self.placed):
            raise CalibrationError("the keys are frozen", do="Place them anew with init_keys(features).")
        heads_NCK = self._heads(self._checked(features))
        rows_NC = nearest(heads_NCK, self.keys.float()) + self._offsets()
        total, flat = self.codebooks * self.pairs, rows_NC.flatten()
        hits = torch.bincount(flat, minlength=total).float()
        sums = hits.new_zeros(total, self.key_dim).index_add_(0, flat, heads_NCK.flatten(0, 1))
        count = hits.new_tensor(float(len(features)))
        all_reduce_sum(hits, sums, count)
        self.sizes.mul_(self.decay).add_(hits.view_as(self.sizes), alpha=1 - self.decay)
        self.averages.mul_(self.decay).add_(sums.view_as(self.averages), alpha=1 - self.decay)
        all_C1 = self.sizes.sum(1, keepdim=True)
        smooth_CJ = (self.sizes + self.eps) / (all_C1 + self.pairs * self.eps) * all_C1
        self.keys.copy_(self.averages / smooth_CJ[..., None])
        if threshold := self.dead_factor * float(count) / self.pairs:
            # only the key is replaced, as in the authors' code: its sum and count have decayed together
            drawn_CJ = torch.randint(len(features), (self.codebooks, self.pairs), generator=generator)
            codebook_C1 = torch.arange(self.codebooks, device=heads_NCK.device)[:, None]
            others_CJK = heads_NCK[drawn_CJ.to(heads_NCK.device), codebook_C1]
            broadcast_first(others_CJK)
            self.keys.copy_(torch.where((self.sizes < threshold)[..., None], others_CJK, self.keys))

    def partial_fit(self, features: Float[Tensor, "N D"], labels: Integer[Tensor, "N"], **options: Any) -> None:
        """Learn from samples, of old classes, new ones or both; values that they do not use stay unchanged to the bit.

        Parameters
        ----------
        features : Tensor of shape (N, D)
            Of the samples.
        labels : Tensor of shape (N,)
            Their classes.
        **options
            ``epochs``, ``learning_rate``, ``batch_size``, ``label_smoothing`` and ``generator`` of :meth:`fit_codes`.
        """
        with modes_restored(self):
            codes = self.train().encode(features)
        self.fit_codes(codes, labels, **options)

    @torch.no_grad()
    def fit_codes(
        self,
        codes: Integer[Tensor, "N C"],
        labels: Integer[Tensor, "N"],
        *,
        epochs: int = 1,
        learning_rate: float = 0.0375,
        batch_size: int = 256,
        label_smoothing: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        """Train the values on codes that were computed once: stochastic gradient descent on the cross-entropy.

        Parameters
        ----------
        codes : Tensor of shape (N, C)
            From :meth:`encode` in training mode.
        labels : Tensor of shape (N,)
            Their classes.
        epochs : int, default: 1
            Passes over the samples.
        learning_rate : float, default: 0.0375
            Per value: the rate of the mean over codebooks, divided by their number. The paper's 0.3 for 256 codebooks
            is 0.0012, with 2000 epochs.
        batch_size : int, default: 256
            Samples per step.
        label_smoothing : float, default: 0.1
            Share of the label that is spread over all classes, in [0, 1).
        generator : torch.Generator, optional
            Draws the order.

        Raises
        ------
        CalibrationError
            If there are no samples.
        HyperparameterError
            If an option is out of range, or a label is not a class.
        ShapeError
            If codes and labels do not fit.

        Notes
        -----
        The gradient of the logits is in closed form, and reaches the values by one addition per code. The paper's bound
        of 1 on its norm never binds for two codebooks or more: it is at most ``sqrt(2 / codebooks)``.
        """
        if codes.shape != (len(labels), self.codebooks):
            found, expected = tuple(codes.shape), (len(labels), self.codebooks)
            raise ShapeError("codes", found=found, expected=expected)
        if not len(labels):
            raise CalibrationError("no samples to learn from", expected="at least one")
        if labels.is_floating_point() or labels.ndim != 1:
            raise ShapeError("labels", found=f"{labels.dtype} of rank {labels.ndim}", expected="class indices")
        for name, value, least in (("epochs", epochs, 0), ("batch_size", batch_size, 1)):
            if value < least:
                raise HyperparameterError(name, found=value, expected=f">= {least}")
        if not (math.isfinite(learning_rate) and learning_rate > 0):
            raise HyperparameterError("learning_rate", found=learning_rate, expected="a positive number")
        if not 0 <= label_smoothing < 1:
            raise HyperparameterError("label_smoothing", found=label_smoothing, expected="0 <= label_smoothing < 1")
        labels = labels.to(self.values.device).long()
        check_labels(labels, self.num_classes)
        if epochs:
            self._count(codes)
        rows_NC, targets_NO = self._rows(codes), functional.one_hot(labels, self.num_classes).to(self.values)
        targets_NO = targets_NO * (1 - label_smoothing) + label_smoothing / self.num_classes
        for _ in range(epochs):
            for part in torch.randperm(len(labels), generator=generator).to(labels.device).split(batch_size):
                rows = rows_NC[part]
                logits = functional.embedding_bag(rows, self.values, mode="mean")
                steps = (logits.softmax(1) - targets_NO[part]) * (-learning_rate / len(part))
                self.values.index_add_(0, rows.flatten(), steps.repeat_interleave(self.codebooks, 0))

    @torch.no_grad()
    def add_classes(self, count: int) -> None:
        """Add classes; the logits of the present ones stay unchanged.

        Raises
        ------
        HyperparameterError
            If ``count`` is less than 1.
        """
        if count < 1:
            raise HyperparameterError("count", found=count, expected=">= 1")
        self.values = nn.Parameter(functional.pad(self.values, (0, count)), self.values.requires_grad)
        self.num_classes += count

    @property
    def unused(self) -> float:
        """The share of pairs that were never trained."""
        return float((self.counts == 0).float().mean())

    def _trained_only(self, features: Tensor) -> Tensor:
        with evaluation_mode(self):
            return self(features)

    def _checked(self, features: Tensor) -> Tensor:
        if features.ndim != 2 or features.shape[1] != self.in_features:
            raise ShapeError("features", found=tuple(features.shape), expected=f"(samples, {self.in_features})")
        if not is_finite(features):
            row = int((~features.isfinite()).any(1).nonzero()[0])
            raise NonFiniteError(f"the features hold NaN or infinity, first in row {row}")
        return features

    def _heads(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C K"]:
        features = features.to(self.keys.device, torch.float32)
        if self.splitter == "random_projection":
            features = features @ self.projection.float()
        return features.view(len(features), self.codebooks, self.key_dim)

    def _offsets(self) -> Tensor:
        return torch.arange(self.codebooks, device=self.keys.device) * self.pairs

    def _rows(self, codes: Integer[Tensor, "N C"]) -> Integer[Tensor, "N C"]:
        """Rows of the values."""
        return codes.to(self.values.device, torch.long) + self._offsets()

    def _count(self, codes: Integer[Tensor, "N C"], *, everywhere: bool = False) -> None:
        hits = torch.bincount(self._rows(codes).flatten(), minlength=self.counts.numel())
        if everywhere:
            all_reduce_sum(hits)
        self.counts += hits.view_as(self.counts)

    def _start_at(self, features: Tensor, kmeans: bool, batch_size: int, generator: torch.Generator | None) -> None:
        """The first keys and the sizes that go with them; the sums are keys times sizes."""
        count, wanted = len(features), self.pairs
        for codebook in range(self.codebooks):  # other samples in each
            rows = torch.randperm(count, generator=generator)[:wanted]
            if count < wanted:
                rows = torch.randint(count, (wanted,), generator=generator)
            own = slice(codebook * self.key_dim, (codebook + 1) * self.key_dim)
            taken = features[rows.to(features.device)].to(self.keys.device, torch.float32)
            taken = taken @ self.projection[:, own].float() if self.splitter == "random_projection" else taken[:, own]
            self.keys[codebook] = taken
        broadcast_first(self.keys)
        batch = self.sizes.new_tensor(float(min(batch_size, count)))
        all_reduce_sum(batch)
        self.sizes.fill_(batch / wanted)
        for _ in range(KMEANS_ROUNDS if kmeans else 0):
            hits, sums = torch.zeros_like(self.sizes).flatten(), torch.zeros_like(self.keys).flatten(0, 1)
            for part in features.split(batch_size):
                heads_NCK = self._heads(part)
                rows = (nearest(heads_NCK, self.keys.float()) + self._offsets()).flatten()
                hits += torch.bincount(rows, minlength=len(hits))
                sums.index_add_(0, rows, heads_NCK.flatten(0, 1))
            all_reduce_sum(hits, sums)
            means = (sums / hits.clamp_min(1)[:, None]).view_as(self.keys)
            used = hits.view_as(self.sizes)
            self.keys.copy_(torch.where(used[..., None] > 0, means, self.keys))
            self.sizes.copy_(used.clamp_min(0.5) * min(batch_size, count) / count)


def nearest(
    heads: Float[Tensor, "N C K"], keys: Float[Tensor, "C J K"], allowed: Bool[Tensor, "C J"] | None = None
) -> Integer[Tensor, "N C"]:
    """The nearest allowed key of each head; of equal distances the first. Few distances are in memory at once."""
    (count, codebooks, _), total = heads.shape, keys.shape[1]
    block = BLOCK if heads.device.type == "cpu" else BLOCK_ON_GPU
    rows = max(16, block // total)
    books = max(1, block // (total * max(1, min(rows, count))))
    found_NC = torch.empty(count, codebooks, dtype=torch.long, device=heads.device)
    for book in range(0, codebooks, books):
        part = slice(book, book + books)
        keys_BJK = keys[part]
        lengths_BJ = keys_BJK.square() @ keys_BJK.new_ones(keys.shape[2])
        if allowed is not None:
            lengths_BJ.masked_fill_(~allowed[part], torch.inf)
        for row in range(0, count, rows):
            heads_BRK = heads[row : row + rows, part].transpose(0, 1)
            # of |h - k|^2 = |h|^2 - 2hk + |k|^2 the first term is the same for all keys
            far_BRJ = torch.baddbmm(lengths_BJ[:, None], heads_BRK, keys_BJK.transpose(1, 2), alpha=-2)
            found_NC[row : row + rows, part] = far_BRJ.min(2).indices.T
    return found_NC
