"""Text as windows of token ids: for calibration, for training, for perplexity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from weightsmith.core.errors import CalibrationError

__all__ = ["read_text", "start_ids", "token_ids", "token_windows"]


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file.

    Raises
    ------
    CalibrationError
        If it is missing, not text or empty.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"cannot read text file {path}", found=error) from error
    if not text.strip():
        raise CalibrationError(f"text file {path} is empty")
    return text


def token_ids(tokenizer: Any, text: str) -> Int[Tensor, "tokens"]:
    """Tokenise a whole text at once, without the warning about the model's context length."""
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)


def start_ids(tokenizer: Any) -> list[int]:
    """Return the special tokens that a tokenizer puts before every text: none, ``<s>``, ``[CLS]``, ...

    Examples
    --------
    >>> from weightsmith.embedded import folder, load_tokenizer
    >>> tokenizer = load_tokenizer(folder("minilm"))
    >>> tokenizer.convert_ids_to_tokens(start_ids(tokenizer)), start_ids(load_tokenizer(folder("smollm2")))
    (['[CLS]'], [])
    """
    bare, whole = (list(tokenizer("a", add_special_tokens=kept)["input_ids"]) for kept in (False, True))
    starts = (place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
    return whole[: next(starts, 0)]


def token_windows(
    ids: Int[Tensor, "tokens"],
    *,
    length: int,
    count: int,
    batch_size: int = 1,
    generator: torch.Generator | None = None,
) -> list[dict[str, Tensor]]:
    """Draw windows of a token stream, as batches for :func:`weightsmith.core.models.stream`.

    Parameters
    ----------
    ids : Tensor of shape (tokens,)
        A tokenised text.
    length : int
        Tokens a window.
    count : int
        Number of windows.
    batch_size : int, default: 1
        Windows a batch.
    generator : torch.Generator, optional
        Draws the starting points; without one the windows are spread evenly over the text.

    Returns
    -------
    list of dict
        ``{"input_ids": Tensor[batch_size, length]}``.

    Raises
    ------
    CalibrationError
        If the text is shorter than one window, or ``count`` or ``length`` is not positive.

    Examples
    --------
    >>> [b["input_ids"].tolist() for b in token_windows(torch.arange(6), length=2, count=2)]
    [[[0, 1]], [[4, 5]]]
    """
    if count < 1 or length < 1:
        raise CalibrationError("calibration windows", found=f"{count} of {length} tokens", expected="at least 1 of 1")
    last = len(ids) - length
    if last < 0:
        raise CalibrationError(
            f"the text has {len(ids)} tokens, one window needs {length}", do="Give a longer text or a smaller length."
        )
    if generator is None:
        starts = torch.linspace(0, last, count).long()
    else:
        starts = torch.randint(last + 1, (count,), generator=generator)
    windows = torch.stack([ids[start : start + length] for start in starts.tolist()])
    return [{"input_ids": chunk} for chunk in windows.split(batch_size)]
