r"""The measures of the loss landscape that tell phases of training apart.

Of several networks trained from different seeds: how well they fit the training data, whether a curve of low loss
connects each pair (:func:`train_curve`), whether their outputs are alike (linear CKA), how far apart their weights are,
and how sharp the loss is around each (:func:`hessian_summary`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.analyze._mode_connectivity import distance
from weightsmith.analyze._phases.curve import loss_and_error, train_curve, wide_copy
from weightsmith.analyze._phases.hessian import HessianSummary, counted_labels, hessian_summary
from weightsmith.core.data import Samples, batched, pad_token_id, split_labels, take, to_model
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.linalg import is_finite, upcast
from weightsmith.core.models import evaluation_mode
from weightsmith.core.training import FitOptions, counted_logits, draw_seed, labeled, predict

__all__ = ["LandscapeMetrics", "NetworkMetrics", "PairMetrics", "landscape_metrics", "linear_cka"]

CHANCE = 0.01
"""A network whose training accuracy is within this of always naming the most frequent class has diverged."""


@dataclass(frozen=True)
class NetworkMetrics:
    """Measures of one network.

    Attributes
    ----------
    train_loss, train_accuracy : float
        Mean cross-entropy in nats, and the share of right predictions, over all labels of the training samples.
    test_accuracy : float
        The same share of the test samples; NaN without any.
    hessian : HessianSummary or None
        None where it was not asked for, or the network has diverged.
    diverged : bool
        Whether weights or loss are not finite, or it is no better than always naming one class.
    """

    train_loss: float
    train_accuracy: float
    test_accuracy: float = math.nan
    hessian: HessianSummary | None = None
    diverged: bool = False


@dataclass(frozen=True)
class PairMetrics:
    """Measures of two networks.

    Attributes
    ----------
    first, second : int
        Their places.
    errors : tuple of float
        Training error in per cent along the curve between them.
    mode_connectivity : float
        See :func:`connectivity`.
    cka : float
        Unbiased linear CKA of their logits.
    distance : float
        Euclidean distance of their weights.
    """

    first: int
    second: int
    errors: tuple[float, ...]
    mode_connectivity: float
    cka: float
    distance: float


@dataclass(frozen=True)
class LandscapeMetrics:
    """Measures of several networks that differ in their seeds, as means over networks and pairs.

    Attributes
    ----------
    train_loss : float
        Mean cross-entropy of the training samples, in nats.
    mode_connectivity : float
        In points of training error; below zero there is a barrier.
    cka : float
        Similarity of the outputs, about 0 to 1.
    classes : int
        Outputs of the networks.
    train_accuracy, test_accuracy, distance, hessian_trace, top_eigenvalue : float
        Means; NaN where not measured.
    language_model : bool
        Whether labels are the next tokens.
    diverged : bool
        Whether a network has diverged.
    networks : tuple of NetworkMetrics
        Each network.
    pairs : tuple of PairMetrics
        Each pair.

    Examples
    --------
    >>> LandscapeMetrics(train_loss=0.01, mode_connectivity=-0.2, cka=0.8, classes=10).gap
    nan
    """

    train_loss: float
    mode_connectivity: float
    cka: float
    classes: int = 10
    train_accuracy: float = math.nan
    test_accuracy: float = math.nan
    distance: float = math.nan
    hessian_trace: float = math.nan
    top_eigenvalue: float = math.nan
    language_model: bool = False
    diverged: bool = False
    networks: tuple[NetworkMetrics, ...] = ()
    pairs: tuple[PairMetrics, ...] = ()

    @property
    def gap(self) -> float:
        """Training accuracy minus test accuracy."""
        return self.train_accuracy - self.test_accuracy


def landscape_metrics(
    models: Sequence[nn.Module],
    training: Samples,
    test: Samples | None = None,
    *,
    hessian_samples: int = 640,
    probes: int = 100,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> LandscapeMetrics:
    """Measure the loss landscape around networks that were trained alike from different seeds.

    Parameters
    ----------
    models : sequence of nn.Module
        At least two, of one architecture. They do not change.
    training : Samples
        What they were trained on, with labels.
    test : Samples, optional
        Other samples, for the accuracy and for the similarity of the outputs; without them the latter is measured on
        the training samples.
    hessian_samples : int, default: 640
        The first training samples, on which the Hessian is measured; 0 leaves it out.
    probes : int, default: 100
        Random vectors for its trace at most.
    generator : torch.Generator, optional
        Of everything random; seed 0 by default.
    **options
        Those of the curves, see :func:`train_curve`; ``batch_size`` is that of the other measures, too.

    Raises
    ------
    CalibrationError
        If there are fewer than two networks, labels are missing, or all labels are the same.
    ShapeError
        If the networks differ in names or shapes.

    Examples
    --------
    >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    >>> data = [(row, int(row[0] > 0)) for row in x]
    >>> models = [nn.Linear(2, 2) for _ in range(2)]
    >>> for model in models:
    ...     _ = nn.init.zeros_(model.bias), model.weight.data.copy_(torch.tensor([[-4.0, 0.0], [4.0, 0.0]]))
    >>> metrics = landscape_metrics(models, data, epochs=2, batch_size=32)
    >>> metrics.train_accuracy, round(metrics.cka, 6), metrics.mode_connectivity
    (1.0, 1.0, 0.0)
    """
    _check(models, hessian_samples)
    seed = draw_seed(generator) if generator is not None else 0
    size = options.get("batch_size", 128)
    if size > len(training):
        raise CalibrationError("batch_size", found=f"{size} for {len(training)} samples", expected="no more than these")
    nets = [wide_copy(model) for model in models]
    pad = pad_token_id(nets[0])
    batches = [to_model(batch, nets[0]) for batch in batched(training, size, pad_token_id=pad)]
    held_out = batches if test is None else [to_model(b, nets[0]) for b in batched(test, size, pad_token_id=pad)]
    few = batched(take(training, 0, hessian_samples), size, pad_token_id=pad) if hessian_samples else []
    share = _largest_share(nets[0], batches)
    with evaluation_mode(nets[0]), torch.no_grad():
        classes = counted_logits(nets[0], batches[0])[0].shape[1]
    networks = []
    for net in nets:
        finite = all(is_finite(p.detach()) for p in net.parameters() if p.is_floating_point())
        loss, error = loss_and_error(net, batches) if finite else (math.nan, math.nan)
        diverged = not math.isfinite(loss) or 1 - error <= share + CHANCE
        networks.append(
            NetworkMetrics(
                loss,
                1 - error,
                1 - loss_and_error(net, held_out)[1] if test is not None and not diverged else math.nan,
                hessian_summary(net, few, probes=probes, generator=torch.Generator().manual_seed(seed))
                if few and not diverged
                else None,
                diverged,
            )
        )
    diverged = any(network.diverged for network in networks)
    outputs = [] if diverged else [_outputs(net, held_out) for net in nets]
    pairs = []
    for a, b in () if diverged else combinations(range(len(nets)), 2):
        first, second = nets[a].state_dict(), nets[b].state_dict()
        curve = train_curve(nets[a], first, second, training, seed=seed, **options)
        names = list(curve.middle)
        similar, apart = linear_cka(outputs[a], outputs[b]), distance(first, second, names)
        pairs.append(PairMetrics(a, b, curve.errors, curve.connectivity, similar, apart))
    hessians = [network.hessian for network in networks if network.hessian is not None]
    return LandscapeMetrics(
        train_loss=_mean([network.train_loss for network in networks]),
        mode_connectivity=_mean([pair.mode_connectivity for pair in pairs]),
        cka=_mean([pair.cka for pair in pairs]),
        classes=classes,
        train_accuracy=_mean([network.train_accuracy for network in networks]),
        test_accuracy=_mean([network.test_accuracy for network in networks]),
        distance=_mean([pair.distance for pair in pairs]),
        hessian_trace=_mean([each.trace for each in hessians]),
        top_eigenvalue=_mean([each.top_eigenvalue for each in hessians]),
        language_model=split_labels(labeled(batches[0]))[1].ndim > 1,
        diverged=diverged,
        networks=tuple(networks),
        pairs=tuple(pairs),
    )


def linear_cka(
    x_NI: Float[Tensor, "samples features"], y_NJ: Float[Tensor, "samples others"], *, unbiased: bool = True
) -> float:
    r"""Return the similarity of two sets of features of the same samples: linear centered kernel alignment.

    .. math:: \|X^\top Y\|_F^2 \,/\, (\|X^\top X\|_F\, \|Y^\top Y\|_F)

    of centered columns. It does not see rotations, scales and shifts. With the samples not many times the features it
    is far above 0 for unrelated ones; the unbiased estimate replaces the three terms by their U-statistics.

    Parameters
    ----------
    x_NI, y_NJ : Tensor of shape (samples, features)
        Features of the same samples; at least four for the unbiased estimate.
    unbiased : bool, default: True
        Which of the two; the unbiased one may be slightly below 0.

    Raises
    ------
    CalibrationError
        If the samples are too few, or do not differ.
    NonFiniteError
        If a feature is NaN or infinite.
    ShapeError
        If the samples are not the same number, or the features no matrices.

    References
    ----------
    Kornblith et al., arXiv 1905.00414; Song et al. (2012) for the unbiased estimate.

    Examples
    --------
    >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> round(linear_cka(x, 3 * x + 1), 6), linear_cka(x[:3, :1], x[:3, :1], unbiased=False)
    (1.0, 1.0)
    """
    if x_NI.ndim != 2 or y_NJ.ndim != 2:
        found = f"{tuple(x_NI.shape)} and {tuple(y_NJ.shape)}"
        raise ShapeError("features", found=found, expected="(samples, features) each", do="Flatten each sample.")
    samples = len(x_NI)
    if len(y_NJ) != samples:
        raise ShapeError("features", found=f"{samples} and {len(y_NJ)} samples", expected="the same samples")
    least = 4 if unbiased else 2
    if samples < least:
        raise CalibrationError("linear CKA", found=f"{samples} samples", expected=f"at least {least}")
    parts = []
    for features in (x_NI, y_NJ):
        wide = upcast(features).double()
        if not is_finite(wide):
            raise NonFiniteError("features hold NaN or infinity")
        centered = wide - wide.mean(0)
        # more features than samples: a triangle has the same products of samples
        parts.append(torch.linalg.qr(centered.T, mode="r")[1].T if wide.shape[1] > samples else centered)
    first, second = parts
    dependence = _unbiased_dependence if unbiased else _dependence
    own = dependence(first, first) * dependence(second, second)
    if own <= 0:
        raise CalibrationError("the features do not differ between samples", do="Give more, and different, samples.")
    return dependence(first, second) / own**0.5


def _dependence(x_NI: Float[Tensor, "n i"], y_NJ: Float[Tensor, "n j"]) -> float:
    return float((x_NI.T @ y_NJ).square().sum())


def _unbiased_dependence(x_NI: Float[Tensor, "n i"], y_NJ: Float[Tensor, "n j"]) -> float:
    """The U-statistic of the Hilbert-Schmidt independence criterion, up to a factor, without a matrix of samples.

    The kernels without their diagonals have rows that sum to minus the diagonal, as the features are centered.
    """
    n = len(x_NI)
    x_N, y_N = x_NI.square().sum(1), y_NJ.square().sum(1)
    product = _dependence(x_NI, y_NJ) - float(x_N @ y_N)
    return product + float(x_N.sum() * y_N.sum()) / ((n - 1) * (n - 2)) - 2 / (n - 2) * float(x_N @ y_N)


def _outputs(net: nn.Module, batches: Sequence[Any]) -> Float[Tensor, "samples classes"]:
    """The logits of each sample, of a text those of the last token that counts."""
    rows = []
    with evaluation_mode(net), torch.no_grad():
        for batch in batches:
            logits, labels = predict(net, batch)
            if logits.ndim == 3:
                places = torch.arange(labels.shape[1], device=labels.device)
                last = ((labels != -100) * places).amax(1)
                logits = logits[torch.arange(len(logits), device=logits.device), last]
            rows.append(upcast(logits).cpu())
    return torch.cat(rows)


def _largest_share(net: nn.Module, batches: Sequence[Any]) -> float:
    """The share of the most frequent label of the training samples."""
    counts: Counter[int] = Counter()
    for batch in batches:
        counts.update(counted_labels(net, batch).flatten().tolist())
    if len(counts) < 2:
        found = f"{len(counts)} different labels"
        raise CalibrationError("the training samples", found=found, expected="samples of two classes or more")
    return max(counts.values()) / counts.total()


def _check(models: Sequence[nn.Module], hessian_samples: int) -> None:
    if len(models) < 2:
        raise CalibrationError(
            "networks", found=len(models), expected="two or more", do="Train the same network from other seeds."
        )
    if hessian_samples < 0:
        raise HyperparameterError("hessian_samples", found=hessian_samples, expected=">= 0")
    shapes = [{name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} for model in models]
    for place, other in enumerate(shapes[1:], 2):
        if odd := [name for name in {**shapes[0], **other} if shapes[0].get(name) != other.get(name)]:
            found = f"{odd[0]!r} of shape {other.get(odd[0])}"
            raise ShapeError(f"network {place}", found=found, expected=f"{shapes[0].get(odd[0])}, as network 1")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
