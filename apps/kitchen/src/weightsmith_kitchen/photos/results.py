"""What recognition and its evaluation return: plain values that go into JSON and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from rich.table import Table
from torch import Tensor

from weightsmith.core.training import Fit
from weightsmith_kitchen.errors import PhotoError
from weightsmith_kitchen.photos.boxes import Box
from weightsmith_kitchen.photos.calibration import expected_calibration_error
from weightsmith_kitchen.photos.probe import Probe

__all__ = ["Candidate", "Evaluation", "PerClass", "Recognition", "Region", "Training", "topk_accuracy", "topk_classes"]


@dataclass(frozen=True)
class Candidate:
    """A food that a photo may show.

    Attributes
    ----------
    label : str
        The class.
    food : str
        A plain name of the food, for tables of nutrients.
    probability : float
        From 0 to 1.
    """

    label: str
    food: str
    probability: float

    def to_dict(self) -> dict[str, Any]:
        """The attributes, as JSON has them."""
        return {"label": self.label, "food": self.food, "probability": round(self.probability, 6)}


@dataclass(frozen=True)
class Region:
    """What one box of a photo, or the whole photo, shows.

    Attributes
    ----------
    candidates : tuple of Candidate
        The most probable foods, best first.
    answered : bool
        Whether the first is probable enough to be given as the answer.
    probability : float
        Of the first candidate's food: labels with the same plain name add up.
    reason : str
        Why there is no answer; empty if there is one.
    box : Box or None
        In pixels of the upright photo; None for the whole photo.
    """

    candidates: tuple[Candidate, ...]
    answered: bool
    probability: float
    reason: str = ""
    box: Box | None = None

    @property
    def answer(self) -> Candidate | None:
        """The first candidate, or None where the classifier abstains."""
        return self.candidates[0] if self.answered and self.candidates else None

    def to_dict(self) -> dict[str, Any]:
        """The attributes, as JSON has them."""
        return {
            "box": [round(value, 2) for value in self.box] if self.box is not None else None,
            "answer": self.answer.label if self.answer is not None else None,
            "food": self.answer.food if self.answer is not None else None,
            "probability": round(self.probability, 6),
            "reason": self.reason,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }


@dataclass(frozen=True)
class Recognition:
    """The foods of a photo.

    Attributes
    ----------
    photo : str
        Its name.
    regions : tuple of Region
        One for each box that was kept, most probable first; one without boxes.
    """

    photo: str
    regions: tuple[Region, ...]

    @property
    def best(self) -> Region:
        """The first region."""
        return self.regions[0]

    @property
    def answer(self) -> Candidate | None:
        """The answer for the first region, or None where the classifier abstains."""
        return self.best.answer

    def to_dict(self) -> dict[str, Any]:
        """The attributes, as JSON has them."""
        return {"photo": self.photo, "regions": [region.to_dict() for region in self.regions]}


@dataclass(frozen=True)
class PerClass:
    """How one class fared.

    Attributes
    ----------
    label : str
        The class.
    photos : int
        How many show it.
    recall : float
        Share of them that were recognized.
    precision : float
        Share of the photos given this label that show it; 0 where none was.
    """

    label: str
    photos: int
    recall: float
    precision: float


@dataclass(frozen=True)
class Evaluation:
    """How well a classifier recognizes labeled photos.

    Attributes
    ----------
    photos : int
        How many.
    accuracy : mapping of int to float
        Top-k accuracy by k.
    calibration_error : float
        Expected calibration error of the highest probability.
    answered : float
        Share of photos that the classifier did not abstain on.
    answered_precision : float
        Accuracy on these; 0 where there are none.
    per_class : tuple of PerClass
        The classes that occur, in the classifier's order.
    confusions : tuple of (str, str, int)
        True class, given class, and photos: the most frequent first.
    """

    photos: int
    accuracy: Mapping[int, float]
    calibration_error: float
    answered: float
    answered_precision: float
    per_class: tuple[PerClass, ...]
    confusions: tuple[tuple[str, str, int], ...]

    @classmethod
    def of(
        cls,
        probabilities: Float[Tensor, "photos classes"],
        targets: Int[Tensor, "photos"],
        classes: Sequence[str],
        *,
        topk: Sequence[int] = (1, 5),
        threshold: float = 0.0,
        confidence: Float[Tensor, "photos"] | None = None,
    ) -> Evaluation:
        """Compare probabilities with true classes.

        Parameters
        ----------
        probabilities : Tensor of shape (photos, classes)
            Of the classes.
        targets : Tensor of shape (photos,)
            The true classes.
        classes : sequence of str
            Their names.
        topk : sequence of int, default: (1, 5)
            The accuracies that are asked for.
        threshold : float, default: 0.0
            Confidence from which a photo is answered.
        confidence : Tensor of shape (photos,), optional
            The highest probability by default.

        Raises
        ------
        PhotoError
            If there are no photos.

        Examples
        --------
        >>> p = torch.tensor([[0.1, 0.5, 0.4], [0.9, 0.05, 0.05]])
        >>> found = Evaluation.of(p, torch.tensor([2, 1]), ["a", "b", "c"], topk=(1, 2))
        >>> found.accuracy, found.confusions
        ({1: 0.0, 2: 1.0}, (('b', 'a', 1), ('c', 'b', 1)))
        """
        if not len(targets):
            raise PhotoError("no photos to evaluate", expected="at least one with its label")
        accuracy = {k: topk_accuracy(probabilities, targets, k) for k in topk}
        given = topk_classes(probabilities, 1)[:, 0]
        right = given == targets
        counts = torch.zeros(len(classes), len(classes), dtype=torch.long)
        counts.index_put_((targets, given), torch.ones_like(targets), accumulate=True)
        answered = (probabilities.max(1).values if confidence is None else confidence) >= threshold
        wrong = counts.clone().fill_diagonal_(0)
        pairs = sorted(
            ((int(wrong[a, b]), classes[a], classes[b]) for a, b in wrong.nonzero().tolist()),
            key=lambda pair: (-pair[0], pair[1], pair[2]),
        )
        rows = [
            PerClass(
                label,
                int(counts[place].sum()),
                float(counts[place, place] / counts[place].sum()),
                float(counts[place, place] / counts[:, place].sum().clamp_min(1)),
            )
            for place, label in enumerate(classes)
            if counts[place].sum()
        ]
        return cls(
            len(targets),
            accuracy,
            expected_calibration_error(probabilities, targets),
            float(answered.double().mean()),
            float(right[answered].double().mean()) if answered.any() else 0.0,
            tuple(rows),
            tuple((a, b, count) for count, a, b in pairs),
        )

    def to_dict(self) -> dict[str, Any]:
        """The attributes, as JSON has them."""
        return {
            "photos": self.photos,
            **{f"top{k}": round(value, 6) for k, value in self.accuracy.items()},
            "expected_calibration_error": round(self.calibration_error, 6),
            "answered": round(self.answered, 6),
            "answered_precision": round(self.answered_precision, 6),
            "per_class": [
                {"label": row.label, "photos": row.photos, "recall": row.recall, "precision": row.precision}
                for row in self.per_class
            ],
            "confusions": [{"label": a, "given": b, "photos": count} for a, b, count in self.confusions],
        }

    def table(self, *, confusions: int = 10) -> Table:
        """The accuracies and the most frequent confusions as a rich table."""
        found = Table("measure", "value", title=f"{self.photos:,} photos", title_justify="left")
        for k, value in self.accuracy.items():
            found.add_row(f"top-{k} accuracy", f"{value:.1%}")
        found.add_row("expected calibration error", f"{self.calibration_error:.3f}")
        found.add_row("answered, and right of these", f"{self.answered:.1%}, {self.answered_precision:.1%}")
        if self.confusions:
            found.add_section()
        for label, given, count in self.confusions[:confusions]:
            found.add_row(f"{label} taken for {given}", str(count))
        return found


@dataclass(frozen=True)
class Training:
    """What training did.

    Attributes
    ----------
    photos, validation_photos : int
        How many were trained on, and how many calibrated the probabilities.
    classes : int
        How many classes.
    probe : Probe or None
        The first stage.
    finetuned : Fit or None
        The record of the second stage.
    temperature, threshold : float
        Of the probabilities, and below which the classifier abstains.
    validation : Evaluation or None
        On the validation photos; None without any.
    """

    photos: int
    validation_photos: int
    classes: int
    probe: Probe | None
    finetuned: Fit | None
    temperature: float
    threshold: float
    validation: Evaluation | None

    def to_dict(self) -> dict[str, Any]:
        """The attributes, as JSON has them."""
        return {
            "photos": self.photos,
            "validation_photos": self.validation_photos,
            "classes": self.classes,
            "probe_loss": self.probe.loss if self.probe else None,
            "finetune_losses": [round(value, 5) for value in self.finetuned.losses] if self.finetuned else None,
            "temperature": self.temperature,
            "threshold": self.threshold,
            "validation": self.validation.to_dict() if self.validation else None,
        }


def topk_classes(scores: Float[Tensor, "photos classes"], k: int) -> Int[Tensor, "photos k"]:
    """The classes with the highest scores, best first; of equal ones the lower index comes first.

    Examples
    --------
    >>> topk_classes(torch.tensor([[0.9, 0.05, 0.05]]), 2).tolist()
    [[0, 1]]
    """
    return torch.argsort(scores, dim=1, descending=True, stable=True)[:, :k]


def topk_accuracy(scores: Float[Tensor, "photos classes"], targets: Int[Tensor, "photos"], k: int) -> float:
    """Share of photos whose class is among the k highest scores.

    Examples
    --------
    >>> logits = torch.tensor([[0.1, 0.5, 0.4], [0.9, 0.05, 0.05]])
    >>> topk_accuracy(logits, torch.tensor([2, 1]), 1), topk_accuracy(logits, torch.tensor([2, 1]), 2)
    (0.0, 1.0)
    """
    return float((topk_classes(scores, k) == targets[:, None]).any(1).double().mean())
