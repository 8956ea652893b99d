r"""KNOW: predict the weights that a larger training set would have given, by extrapolating measured forgetting.

A trained network is fine-tuned on four ever smaller nested subsets of its own data. Each weight then has a history of
five values, from which a small meta-trained predictor extrapolates in the other direction, to a larger data set. The
predicted weights are a starting point for transfer learning with few examples. They have to be fine-tuned before use.

.. math::
    \hat\theta_{-1} = g(\theta_{S-1}, \dots, \theta_1, \theta_0), \qquad
    D_{S-1} \subset \dots \subset D_1 \subset D_0, \quad |D_s| = \lfloor N r^s \rfloor

Jang, Kim, Kim: "Learning from Oblivion: Predicting Knowledge-Overflowed Weights via Retrodiction of Forgetting",
CVPR 2026, arXiv:2508.05059.

::

    trajectory = ForgettingTrajectory(model, fit, dataset).collect()
    model.load_state_dict(KnowPredictor.from_pretrained("ours").retrodict(trajectory, steps=3))
    recalibrate_batchnorm(model, batches)

or, for five checkpoints on disk, :func:`know`. Most of the gain is the smaller norm of the predicted weights: layers
in front of normalization then learn faster. Always compare with :func:`matched_shrink`.
"""
