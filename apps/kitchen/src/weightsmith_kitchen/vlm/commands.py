"""Training of a vision-language model on a table of photos and lists, from the table to a folder with a report."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch

from weightsmith.core.io import check_output
from weightsmith.core.training import FitOptions
from weightsmith_kitchen.calories.retrieve import CalorieIndex
from weightsmith_kitchen.calories.table import CalorieTable
from weightsmith_kitchen.calories.validation import check_lists
from weightsmith_kitchen.errors import PhotoError
from weightsmith_kitchen.photos.folder import Example, grouped_split, join_duplicates
from weightsmith_kitchen.vlm.model import VisionPrefixLM
from weightsmith_kitchen.vlm.scores import ListScores, odd_lists, score_lists

__all__ = ["VlmTrained", "read_answers", "train_vlm"]


@dataclass(frozen=True)
class VlmTrained:
    """What training on a table gave.

    Attributes
    ----------
    out : str
        The model's folder.
    photos : int
        That were trained on.
    loss : float
        Mean over the last tenth of the steps.
    seconds : float
        Of the training.
    checks : str
        What is doubtful in the lists.
    notes : tuple of str
        What is odd about lists and test, with counts: items that are not read or in no table, no photo to test on.
    test : ListScores or None
        On photos of other groups; None without any.
    samples : tuple of (str, str, str)
        Photo, true list and written list of some held-out photos.
    """

    out: str
    photos: int
    loss: float
    seconds: float
    checks: str
    notes: tuple[str, ...]
    test: ListScores | None
    samples: tuple[tuple[str, str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """The attributes, as JSON has them."""
        return {
            "out": self.out,
            "photos": self.photos,
            "loss": self.loss,
            "seconds": self.seconds,
            "checks": self.checks,
            "notes": list(self.notes),
            "test": None if self.test is None else self.test.to_dict(),
            "samples": [list(sample) for sample in self.samples],
        }


def read_answers(table: str | os.PathLike[str]) -> list[Example]:
    """Read a CSV of photos and lists: columns ``photo``, ``answer`` and, optionally, ``group``.

    Parameters
    ----------
    table : path-like
        Paths of photos are relative to it. Photos of one group (a plate, a portion) stay in one part.

    Raises
    ------
    PhotoError
        If it cannot be read, a column is missing, or photos or answers are not there; all such rows are counted.
    """
    path = Path(table)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PhotoError(f"table {path} cannot be read", found=error, expected="CSV in UTF-8") from error
    if not rows or not {"photo", "answer"} <= {str(name) for name in rows[0]}:
        found = sorted(map(str, rows[0])) if rows else "no row"
        raise PhotoError(f"table {path}", found=found, expected="columns photo and answer, and rows")
    examples, wrong = [], []
    for number, row in enumerate(rows, 2):
        name, answer = (row["photo"] or "").strip(), (row["answer"] or "").strip()
        photo = path.parent / name
        reason = "no photo named" if not name else "no answer" if not answer else ""
        if not reason and not photo.is_file():
            reason = f"no file {name}"
        if None in row:  # DictReader's key of cells that no column names
            reason = "more cells than columns: put the list in quotes"
        if reason:
            wrong.append(f"line {number}: {reason}")
        examples.append(Example(str(photo), answer, None, (row.get("group") or "").strip() or name, name))
    if wrong:
        shown = "; ".join(wrong[:10]) + (f"; and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        raise PhotoError(f"table {path}", found=shown, expected="a photo and its list in each row")
    return examples


def train_vlm(
    table: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    lm: str = "embedded:smollm2",
    rank: int = 8,
    calories: str | os.PathLike[str] | None = None,
    held_out: float = 0.2,
    seed: int = 0,
    overwrite: bool = False,
    **options: Unpack[FitOptions],
) -> VlmTrained:
    """Train projector and LoRA on photos with lists, test on photos of other groups, and write a folder.

    Parameters
    ----------
    table : path-like
        See :func:`read_answers`. Photos that look the same are put into one group.
    out : path-like
        The folder to create: the model, and ``report.json``.
    lm : str, default: "embedded:smollm2"
        The language model: embedded, or a Hugging Face folder.
    rank : int, default: 8
        Of the LoRA on ``q_proj`` and ``v_proj``, with alpha twice the rank; 0 trains the projector alone.
    calories : path-like, optional
        JSON, kcal per unit of ingredient: the test compares kcal. Grams are compared without.
    held_out : float, default: 0.2
        Share of the photos to test on.
    seed : int, default: 0
        Of split, projector, order and dropout.
    overwrite : bool, default: False
        Replace what is at ``out``.
    **options
        See :meth:`~weightsmith_kitchen.calories.VisionPrefixLM.fit`.

    Raises
    ------
    PhotoError, ModelError
        If the table, a photo or the language model cannot be used.
    CheckpointError
        If ``out`` exists or cannot be written; said before training.
    """
    check_output(out, overwrite=overwrite, inputs=[table, calories])
    index = None if calories is None else CalorieIndex(CalorieTable.from_json(Path(calories)))
    examples = join_duplicates(read_answers(table))
    # One label for all: lists that occur once would otherwise all be trained on.
    parts = grouped_split(
        ["list"] * len(examples), [x.group for x in examples], shares=(1 - held_out, 0.0, held_out), seed=seed
    )
    learned, held = ([x for x, part in zip(examples, parts, strict=True) if part == kept] for kept in ("train", "test"))
    model = VisionPrefixLM.from_parts(lm=lm, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    if rank:
        model.add_lora(r=rank, alpha=2 * rank)
    tokens, held_tokens = model.encode(_photos(learned)), model.encode(_photos(held)) if held else None
    answers = [x.label for x in learned]
    run = model.fit(tokens, answers, seed=seed, **options)
    test: ListScores | None = None
    samples: tuple[tuple[str, str, str], ...] = ()
    if held_tokens is not None:
        longest = max(len(model.token_ids(answer)) for answer in answers)
        said = model.write(held_tokens, max_new_tokens=longest + 8)
        wanted = [x.label for x in held]
        test = score_lists(said, wanted, answers, index=index, tokens=held_tokens, known_tokens=tokens)
        samples = tuple((x.name, x.label, text) for x, text in zip(held[:20], said, strict=False))
    last = run.losses[-max(1, len(run.losses) // 10) :]
    lists = [x.label for x in examples]
    notes = odd_lists(lists, index)
    if test is None:
        notes.append("no photo was left to test on: give photos of more groups, or a larger --held-out")
    elif test.error is None:
        notes.append("no list of the test, or of the training, has a total: the foods alone are tested")
    loss, checks = sum(last) / len(last), str(check_lists(lists))
    result = VlmTrained(str(out), len(learned), loss, run.seconds, checks, tuple(notes), test, samples)
    report = json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n"
    model.save_pretrained(out, files={"report.json": report}, overwrite=overwrite)
    return result


def _photos(examples: Sequence[Example]) -> list[str | bytes]:
    return [example.photo for example in examples]
