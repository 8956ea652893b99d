"""Supervised dictionary learning: one low-rank dictionary that reconstructs the features and predicts the label.

"Supervised Dictionary Learning with Auxiliary Covariates" (Lee, Lyu, Yao, 2022), arXiv 2206.06774. The estimator is
:class:`SupervisedDictionaryClassifier`; the objective is in :mod:`~weightsmith.dictionary._supervised.problem`.
"""

from weightsmith.dictionary._supervised.method import SupervisedDictionaryClassifier

__all__ = ["SupervisedDictionaryClassifier"]
