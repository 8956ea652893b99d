"""How close a regression network has come to one that never saw the forgotten samples.

The target is the value of a network retrained without them. Two retrained networks differ as well: their distance is
the floor. None of these measures is "lower is better" or "higher is better" by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.data import Samples
from weightsmith.core.errors import CalibrationError, MissingDependencyError, NonFiniteError, ShapeError
from weightsmith.core.linalg import is_finite
from weightsmith.core.training import fit
from weightsmith.forget._shared.regression import (
    LossName,
    check_regression,
    distance_of,
    errors,
    predict_values,
    sample_errors,
    supervised_loss,
)

__all__ = [
    "membership_share",
    "paired_distance",
    "predict_values",
    "relearn_batches",
    "sample_errors",
    "svc_membership_share",
    "wasserstein_distance",
]


def wasserstein_distance(ours: Float[Tensor, "B ..."], theirs: Float[Tensor, "M ..."]) -> float:
    """Compute the 1-Wasserstein distance between the distributions of two networks' predictions.

    Parameters
    ----------
    ours, theirs : Tensor of shape (samples,) or (samples, outputs)
        Predictions, see :func:`~weightsmith.forget.predict_values`. Several outputs are averaged.

    Raises
    ------
    CalibrationError
        If there are none.
    ShapeError
        If they have other outputs.

    Examples
    --------
    >>> round(wasserstein_distance(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 3.0, 5.0])), 4)
    1.3333
    """
    from scipy.stats import wasserstein_distance as distance

    _check_outputs(ours, theirs)
    columns = (values.double().cpu().reshape(len(values), -1).T.numpy() for values in (ours, theirs))
    return float(np.mean([distance(a, b) for a, b in zip(*columns, strict=True)]))


def paired_distance(ours: Float[Tensor, "B ..."], theirs: Float[Tensor, "B ..."]) -> float:
    """Compute the mean absolute difference of two networks' predictions, sample by sample.

    It is at least their :func:`wasserstein_distance`, which forgets which prediction belongs to which sample.

    Raises
    ------
    CalibrationError
        If there are none.
    ShapeError
        If the shapes differ.

    Examples
    --------
    >>> paired_distance(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0]))
    1.0
    """
    _check_outputs(ours, theirs)
    if len(ours) != len(theirs):
        raise ShapeError("predictions", found=f"{len(ours)} and {len(theirs)}", expected="those of the same samples")
    return float((ours.double().cpu() - theirs.double().cpu()).abs().mean())


def membership_share(
    members: Float[Tensor, "members"], others: Float[Tensor, "others"], forgotten: Float[Tensor, "forgotten"]
) -> float:
    """Share of forgotten samples that an attacker takes for training data, because their error is small.

    The attacker's threshold lies halfway between the median error of members and that of other samples. Of samples that
    nothing tells from members, more than half are called so; compare with the share of a retrained network.

    Parameters
    ----------
    members, others, forgotten : Tensor of shape (samples,)
        Errors of one network, see :func:`~weightsmith.forget.sample_errors`: on samples it was trained on, on samples
        never seen, and on those to forget.

    Raises
    ------
    CalibrationError
        If there are none of a kind.
    NonFiniteError
        If an error is NaN or infinite.

    Examples
    --------
    >>> membership_share(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0]), torch.tensor([0.1, 3.0]))
    0.5
    """
    _check_errors(members, others, forgotten)
    threshold = (members.double().quantile(0.5) + others.double().quantile(0.5)) / 2
    # equal errors on both sides of the threshold count half
    called = (forgotten < threshold).double() + 0.5 * (forgotten == threshold).double()
    return float(called.mean())


def svc_membership_share(
    members: Float[Tensor, "members"], others: Float[Tensor, "others"], forgotten: Float[Tensor, "forgotten"]
) -> float:
    """As :func:`membership_share`, by the paper's attacker: a support vector classifier on the errors.

    It needs scikit-learn, and time that grows with the square of the number of samples; the authors take 2000 of each.

    Raises
    ------
    CalibrationError
        If there are none of a kind.
    NonFiniteError
        If an error is NaN or infinite.
    MissingDependencyError
        If scikit-learn is not installed.

    Examples
    --------
    >>> svc_membership_share(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 3.0]))
    0.5
    """
    try:
        from sklearn.svm import SVC
    except ImportError as error:
        raise MissingDependencyError(
            "scikit-learn is not installed", do="pip install 'weightsmith[dictionary]', or use membership_share."
        ) from error
    _check_errors(members, others, forgotten)
    features = torch.cat([members, others]).double().cpu().numpy()[:, None]
    labels = np.repeat([1, 0], [len(members), len(others)])
    attacker = SVC(C=3, gamma="auto", kernel="rbf").fit(features, labels)
    return float(attacker.predict(forgotten.double().cpu().numpy()[:, None]).mean())


def relearn_batches(
    model: nn.Module,
    samples: Samples,
    forgotten: Samples,
    bound: float,
    *,
    loss: LossName = "l1",
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
    learning_rate: float = 1e-2,
    epochs: int = 10,
    batch_size: int = 256,
    seed: int = 0,
) -> int | None:
    """Count the batches of training on all samples until forgotten ones are predicted again.

    Far fewer than a retrained network needs say that the memory is still there. Give both counts: their ratio (the
    anamnesis index) hides small numbers.

    Parameters
    ----------
    model : nn.Module
        The network; a copy of it is trained.
    samples : sequence of samples
        All training data, those to forget included.
    forgotten : sequence of samples
        Where the error is measured after every batch: few, and other ones than in ``samples``.
    bound : float
        Error that counts as known again; the paper takes 1.05 times that of the original network.
    loss : {"l1", "mse", "huber", "pinball"}, default: "l1"
        Loss and error.
    quantiles : sequence of float, default: (0.1, 0.5, 0.9)
        Of the pinball loss.
    learning_rate, epochs, batch_size
        Of the training.
    seed : int, default: 0
        Of the order of the samples.

    Returns
    -------
    int or None
        Batches; 0 if the error is below already, None if ``epochs`` were not enough.

    Raises
    ------
    CalibrationError
        If a set is empty.

    Examples
    --------
    >>> data = [(torch.tensor([x]), torch.tensor([2 * x])) for x in torch.linspace(-1, 1, 32).tolist()]
    >>> model = nn.Linear(1, 1)
    >>> _ = nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    >>> relearn_batches(model, data, data[:4], 0.5, learning_rate=0.5, batch_size=32)
    3
    """
    distance = distance_of(loss, quantiles)
    check_regression(model, {"training": samples, "forgotten": forgotten}, distance)
    if float(errors(model, forgotten, distance).mean()) <= bound:
        return 0
    learner = copy.deepcopy(model)

    def look(step: int, _: float) -> None:
        if float(errors(learner, forgotten, distance).mean()) <= bound:
            raise _ReachedError(step)

    try:
        fit(
            learner,
            samples,
            loss=supervised_loss(learner, distance),
            after_step=look,
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
        )
    except _ReachedError as reached:
        return reached.step
    return None


class _ReachedError(Exception):
    """Ends a training run: the error is below the bound."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


def _check_outputs(ours: Tensor, theirs: Tensor) -> None:
    if not len(ours) or not len(theirs):
        raise CalibrationError("no predictions", expected="at least one")
    if ours.shape[1:] != theirs.shape[1:]:
        raise ShapeError("outputs of the networks", found=tuple(theirs.shape[1:]), expected=tuple(ours.shape[1:]))


def _check_errors(*kinds: Tensor) -> None:
    for name, kind in zip(("members", "other samples", "forgotten samples"), kinds, strict=True):
        if not len(kind):
            raise CalibrationError(f"errors of {name}", found="none", expected="at least one")
        if not is_finite(kind):
            raise NonFiniteError(f"errors of {name} hold NaN or infinity")
