r"""KNOW: predict the weights that more data would have given, by running measured forgetting backwards.

A trained network is fine-tuned on four ever smaller nested subsets of its own data. Each weight then has a history
of five values, and a small meta-trained predictor maps the history to the next value *in the other direction*: the
weights a larger data set would have given. They are meant as the starting point of transfer learning with few
examples, not as a network to use as it is.

.. math::
    \hat\theta_{-1} = g(\theta_{S-1}, \dots, \theta_1, \theta_0), \qquad
    D_{S-1} \subset \dots \subset D_1 \subset D_0, \quad |D_s| = \lfloor N r^s \rfloor

Jang, Kim, Kim: "Learning from Oblivion: Predicting Knowledge-Overflowed Weights via Retrodiction of Forgetting",
CVPR 2026, arXiv:2508.05059.

::

    trajectory = ForgettingTrajectory(model, fit, dataset).collect()
    model.load_state_dict(KnowPredictor.from_pretrained("ours").retrodict(trajectory, steps=3))
    recalibrate_batchnorm(model, batches)

or, for five checkpoints on disk, :func:`know`. Most of the gain is the smaller norm of the predicted weights, which
lets layers in front of normalisation learn faster: always compare with :func:`matched_shrink`.
"""

from weightsmith.core.models import recalibrate_batchnorm, reset_batchnorm
from weightsmith.predict._know.baselines import (
    ema,
    linear,
    logfit,
    matched_learning_rates,
    matched_shrink,
    naive,
    rescaled,
    shrink_and_perturb,
    soup,
)
from weightsmith.predict._know.method import know
from weightsmith.predict._know.network import HistoryNet, load_keras_h5
from weightsmith.predict._know.predictor import KnowPredictor
from weightsmith.predict._know.smooth import SmoothRule
from weightsmith.predict._know.trajectory import ForgettingTrajectory, Trajectory

__all__ = [
    "ForgettingTrajectory",
    "HistoryNet",
    "KnowPredictor",
    "SmoothRule",
    "Trajectory",
    "ema",
    "know",
    "linear",
    "load_keras_h5",
    "logfit",
    "matched_learning_rates",
    "matched_shrink",
    "naive",
    "recalibrate_batchnorm",
    "rescaled",
    "reset_batchnorm",
    "shrink_and_perturb",
    "soup",
]
