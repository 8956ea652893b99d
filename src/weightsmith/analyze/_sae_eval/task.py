"""Prompts with known attributes, and what they become when one attribute changes.

Indirect object identification (IOI): "Then, Mary and John had lots of fun at the school. John gave a ring to" goes on
with "Mary", the indirect object (IO), not with "John", the repeated subject (S).

Legend: ``P`` prompts, ``T`` tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from weightsmith.core.errors import CalibrationError, HyperparameterError, ShapeError

__all__ = ["AttributeTask", "Prompts", "ioi_task", "single_tokens"]

PREFIX = "Then,"
TEMPLATES = (
    " {a} and {b} had lots of fun at the {place}. {c} gave a {object} to",
    " {a} and {b} were working at the {place}. {c} decided to give a {object} to",
)
"""The second and third of the reference's templates; a model that does not know the task fails on the first."""

NAMES = (
    "Mary John James Tom Anna Sarah Peter Paul Mark David Michael Robert William Richard Charles George Thomas Daniel "
    "Laura Alice Kate Jane Emma Lucy Julia Sophie Rachel Susan Linda Karen Amy Lisa Alex Adam Jack Sam Ben Max Simon "
    "Steven Kevin Brian Eric Scott Frank Henry Edward Patrick Andrew Joseph Matthew Christopher Anthony Jason Justin "
    "Ryan Kyle Sean Martin Victoria Elizabeth Jessica Jennifer Michelle Melissa Amanda Stephanie Rebecca Helen Diana "
    "Claire Maria Rose Grace Ruth Louis Oliver Harry Fred Roger Keith Dan Chris Nick Jeff Greg Tim Jim Joe Bob Bill"
)
PLACES = "school park beach store office station house library hospital restaurant garden market museum farm"
OBJECTS = "ring book drink ball bag box gift letter key phone picture flower camera hat pen watch bottle coat"


@dataclass(frozen=True)
class Prompts:
    """Prompts of one length, with what is known of each.

    Attributes
    ----------
    input_ids : Tensor of shape (prompts, tokens)
        Shorter prompts are padded on the left.
    attention_mask : Tensor of shape (prompts, tokens)
        False on padding.
    positions : mapping of str to Tensor of shape (prompts,)
        Where a named token is, such as ``"end"``.
    attributes : mapping of str to Tensor of shape (prompts,)
        The number of each attribute's value.
    answers : Tensor of shape (prompts, 2)
        The right token, and the wrong one that it competes with.
    """

    input_ids: Int[Tensor, "P T"]
    attention_mask: Bool[Tensor, "P T"]
    positions: Mapping[str, Int[Tensor, " P"]]
    attributes: Mapping[str, Int[Tensor, " P"]]
    answers: Int[Tensor, "P 2"]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: slice | Tensor) -> Prompts:
        """Return some of the prompts."""
        positions = {name: at[rows] for name, at in self.positions.items()}
        attributes = {name: values[rows] for name, values in self.attributes.items()}
        return Prompts(self.input_ids[rows], self.attention_mask[rows], positions, attributes, self.answers[rows])


@dataclass(frozen=True)
class AttributeTask:
    """A task whose answer depends on attributes that are known for each prompt.

    Attributes
    ----------
    train : Prompts
        What dictionaries are fitted on, and features are told apart by.
    evaluation : Prompts
        What they are judged on.
    counterfactuals : mapping of str to Prompts
        Per attribute the evaluation prompts with another value of it, in the same order.
    values : mapping of str to sequence of str
        The values of each attribute.
    """

    train: Prompts
    evaluation: Prompts
    counterfactuals: Mapping[str, Prompts]
    values: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        for name, prompts in {"train": self.train, "evaluation": self.evaluation, **self.counterfactuals}.items():
            shapes = {len(prompts.answers), len(prompts.attention_mask), *map(len, prompts.attributes.values())}
            if shapes != {len(prompts)} or not len(prompts):
                raise ShapeError(f"prompts of {name!r}", found=sorted(shapes), expected="one number, at least 1")
            if prompts.attributes.keys() != self.values.keys():
                raise CalibrationError(
                    f"attributes of {name!r}", found=sorted(prompts.attributes), expected=sorted(self.values)
                )
        for name, prompts in self.counterfactuals.items():
            if name not in self.values or len(prompts) != len(self.evaluation):
                raise CalibrationError(
                    f"counterfactuals {name!r}",
                    found=f"{len(prompts)} prompts",
                    expected=f"one of {sorted(self.values)}, {len(self.evaluation)} prompts",
                )


def single_tokens(tokenizer: Any, words: Sequence[str], before: str = PREFIX) -> dict[str, int]:
    """Return the words that are one token after a text and a space, with their tokens.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Any of the transformers library.
    words : sequence of str
        The candidates.
    before : str
        The text.

    Examples
    --------
    >>> from weightsmith.embedded import folder, load_tokenizer
    >>> sorted(single_tokens(load_tokenizer(folder("minilm")), ["mary", "antidisestablishment"]))
    ['mary']
    """
    start = tokenizer(before, add_special_tokens=False)["input_ids"]
    found: dict[str, int] = {}
    for word in dict.fromkeys(words):
        ids = tokenizer(f"{before} {word}", add_special_tokens=False)["input_ids"]
        if ids[:-1] == start and ids[-1] != tokenizer.unk_token_id and ids[-1] not in found.values():
            found[word] = ids[-1]
    return found


def ioi_task(
    tokenizer: Any,
    names: Sequence[str] | None = None,
    *,
    train_prompts: int = 1024,
    evaluation_prompts: int = 256,
    count: int = 32,
    seed: int = 0,
) -> AttributeTask:
    """Make prompts of indirect object identification for a tokenizer.

    The attributes are the name of the indirect object (``io``), the repeated name (``s``) and which of them comes first
    (``io_pos``). Evaluation prompts have names of the first half, new names in counterfactuals are of the second.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The model's.
    names : sequence of str, optional
        First names; each must be one token after a space. By default common names that are.
    train_prompts, evaluation_prompts : int
        Number of prompts, at least 1.
    count : int, default: 32
        Number of names where none are given, at least 8.
    seed : int, default: 0
        Of the draws.

    Returns
    -------
    AttributeTask
        With positions ``io``, ``s1``, ``s1+1``, ``s2`` and ``end``.

    Raises
    ------
    CalibrationError
        If given names are not single tokens, or fewer than eight common ones are.
    HyperparameterError
        If a number is out of range.

    Examples
    --------
    >>> from weightsmith.embedded import folder, load_tokenizer
    >>> tokenizer = load_tokenizer(folder("smollm2"))
    >>> task = ioi_task(tokenizer, train_prompts=4, evaluation_prompts=2)
    >>> tokenizer.decode(task.evaluation.input_ids[0])
    'Then, Richard and Mark were working at the market. Richard decided to give a book to'
    >>> tokenizer.decode(task.counterfactuals["io_pos"].input_ids[0])
    'Then, Mark and Richard were working at the market. Richard decided to give a book to'
    """
    for name, value, least in (("train_prompts", train_prompts, 1), ("evaluation_prompts", evaluation_prompts, 1),
                               ("count", count, 8)):  # fmt: skip
        if value < least:
            raise HyperparameterError(name, found=value, expected=f">= {least}")
    if tokenizer is None:
        raise CalibrationError("the model has no tokenizer", expected="one, to write the prompts with")
    tokens = single_tokens(tokenizer, NAMES.split() if names is None else names)
    if missing := [name for name in names or () if name not in tokens]:
        raise CalibrationError("names that are not single tokens of their own", found=missing, do="Leave them out.")
    chosen = list(tokens)[: count if names is None else None]
    if len(chosen) < 8:
        raise CalibrationError("names that are single tokens of this tokenizer", found=chosen, expected="at least 8")
    writer = _Writer(tokenizer, {name: tokens[name] for name in chosen})
    draw = torch.Generator().manual_seed(seed)
    half, quarter = len(chosen) // 2, (3 * len(chosen)) // 4
    train = writer.draw(train_prompts, range(len(chosen)), draw)
    evaluation = writer.draw(evaluation_prompts, range(half), draw)
    io = torch.randint(half, quarter, (evaluation_prompts,), generator=draw)
    s = torch.randint(quarter, len(chosen), (evaluation_prompts,), generator=draw)
    changed = {"io": {"io": io}, "s": {"s": s}, "io_pos": {"io_pos": 1 - evaluation["io_pos"]}}
    return AttributeTask(
        writer.write(train),
        writer.write(evaluation),
        {name: writer.write({**evaluation, **new}) for name, new in changed.items()},
        {"io": chosen, "s": chosen, "io_pos": ("IO first", "S first")},
    )


class _Writer:
    """Writes prompts; every part that differs between two prompts of a template is a single token."""

    def __init__(self, tokenizer: Any, names: Mapping[str, int]) -> None:
        self.tokenizer, self.names, self.tokens = tokenizer, list(names), torch.tensor(list(names.values()))
        self.places = list(single_tokens(tokenizer, PLACES.split(), "at the"))
        self.objects = list(single_tokens(tokenizer, OBJECTS.split(), "gave a"))

    def draw(self, count: int, names: Sequence[int], draw: torch.Generator) -> dict[str, Tensor]:
        """Draw what a prompt is made of."""
        first = torch.randint(len(names), (count,), generator=draw)
        second = (first + torch.randint(1, len(names), (count,), generator=draw)) % len(names)
        sizes = {"io_pos": 2, "template": len(TEMPLATES), "place": len(self.places), "object": len(self.objects)}
        return {"io": first, "s": second} | {
            name: torch.randint(size, (count,), generator=draw) for name, size in sizes.items()
        }

    def write(self, drawn: Mapping[str, Tensor]) -> Prompts:
        """Write the prompts as tokens, and find the names in them."""
        rows = zip(*(values.tolist() for values in drawn.values()), strict=True)
        texts = []
        for row in rows:
            parts = dict(zip(drawn, row, strict=True))
            io, s = self.names[parts["io"]], self.names[parts["s"]]
            a, b = (s, io) if parts["io_pos"] else (io, s)
            slots = {"place": self.places[parts["place"]], "object": self.objects[parts["object"]]}
            texts.append(PREFIX + TEMPLATES[parts["template"]].format(a=a, b=b, c=s, **slots))
        ids_PT, mask_PT = _padded(self.tokenizer(texts)["input_ids"])
        answers = torch.stack([self.tokens[drawn["io"]], self.tokens[drawn["s"]]], dim=1)
        is_io, is_s = ((ids_PT == answers[:, i, None]) & mask_PT for i in range(2))
        if not bool((is_io.sum(1) == 1).all() and (is_s.sum(1) == 2).all()):
            raise CalibrationError("the tokenizer joins names with other tokens", do="Choose other names.")
        s1 = is_s.int().argmax(1)
        s2 = ids_PT.shape[1] - 1 - is_s.flip(1).int().argmax(1)
        end = torch.full_like(s1, ids_PT.shape[1] - 1)
        positions = {"io": is_io.int().argmax(1), "s1": s1, "s1+1": s1 + 1, "s2": s2, "end": end}
        attributes = {name: drawn[name] for name in ("io", "s", "io_pos")}
        return Prompts(ids_PT, mask_PT, positions, attributes, answers)


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "P T"], Bool[Tensor, "P T"]]:
    """Token ids padded on the left, so that all prompts end at the same place."""
    length = max(map(len, rows))
    ids_PT = torch.tensor([[0] * (length - len(row)) + list(row) for row in rows])
    return ids_PT, torch.arange(length) >= length - torch.tensor([len(row) for row in rows])[:, None]
