"""Confidence-guided annealing in Hugging Face's Trainer; a file of its own because it imports the Trainer and PEFT."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from weightsmith.core.choices import check_whole
from weightsmith.quantize._ofq.annealing import ConfidenceGuidedAnnealing, check_boundary

__all__ = ["AnnealingCallback"]


class AnnealingCallback(TrainerCallback):
    """:class:`ConfidenceGuidedAnnealing` in Hugging Face's ``Trainer``, from a step to the end of training.

    The paper anneals at the final learning rate: let the schedule have fallen by then. The Trainer does not say when an
    exception stops it: the weights stay frozen then until the next run begins, or :meth:`end` is called.

    Parameters
    ----------
    from_step : int
        The first step that is annealed, counted from 0; so are steps of a resumed run.
    **options
        As for :class:`ConfidenceGuidedAnnealing`.

    Examples
    --------
    >>> AnnealingCallback(from_step=1000, boundary=0.01).options
    {'boundary': 0.01}
    """

    def __init__(self, from_step: int, **options: Any) -> None:
        check_boundary(options.get("boundary", 0.005))
        self.from_step, self.options = check_whole("from_step", from_step, 0), options
        self.annealing: ConfidenceGuidedAnnealing | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the annealing of a run that an exception has stopped: it is of another optimizer."""
        self.end()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin annealing where its time has come."""
        if self.annealing is None and state.global_step >= self.from_step:
            optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
            self.annealing = ConfidenceGuidedAnnealing(kwargs["model"], optimizer, **self.options).__enter__()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End it."""
        self.end()

    def end(self) -> None:
        """Let all weights be trained again."""
        if self.annealing is not None:
            self.annealing.__exit__()
            self.annealing = None
