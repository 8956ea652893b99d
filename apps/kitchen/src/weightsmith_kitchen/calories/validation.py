"""Find what was destroyed in lists of ingredients before they are trained on or priced."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ListCheck", "check_lists", "repair_fractions"]

REPAIRS = {"12": "1/2", "14": "1/4", "34": "3/4", "13": "1/3", "23": "2/3", "18": "1/8", "38": "3/8"}
_UNITS = r"(?:cup|teaspoon|tablespoon|pound|ounce)s?\b"
# Not the end of a range ("10-12 ounce"), of a fraction or of a longer number.
_DESTROYED = re.compile(rf"(?<![\d/.,\-–])(?<!to )(?P<n>{'|'.join(REPAIRS)})(?=\s+{_UNITS})", re.IGNORECASE)
_INTACT = re.compile(r"\d/\d")


@dataclass(frozen=True, slots=True)
class ListCheck:
    """What `check_lists` found.

    Attributes
    ----------
    lists : int
        Number of texts.
    suspicious, intact : int
        Amounts that look like a fraction without its slash, and fractions that have it.
    destroyed : tuple of int
        Places of the texts with at least one suspicious amount.
    truncated : tuple of int
        Places of the texts with more words than the limit.
    max_words : int
        The limit.
    """

    lists: int
    suspicious: int
    intact: int
    destroyed: tuple[int, ...]
    truncated: tuple[int, ...]
    max_words: int

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return not (self.destroyed or self.truncated)

    def __str__(self) -> str:
        return (
            f"{self.lists} lists: {self.suspicious} amounts look like destroyed fractions ({self.intact} are intact), "
            f"in {len(self.destroyed)} lists; {len(self.truncated)} lists have more than {self.max_words} words"
        )


def repair_fractions(text: str) -> str:
    """Put the slash back into "12 cup", "34 teaspoon" and the like.

    A heuristic: a genuine "12 ounce" is changed as well. Only the numbers 12, 14, 34, 13, 23, 18 and 38 before cup,
    teaspoon, tablespoon, pound and ounce are changed.

    Examples
    --------
    >>> repair_fractions("12 cup of milk, 1 34 cup of rice, 12 eggs, 10-12 ounces of ham")
    '1/2 cup of milk, 1 3/4 cup of rice, 12 eggs, 10-12 ounces of ham'
    """
    return _DESTROYED.sub(lambda match: REPAIRS[match["n"]], text)


def check_lists(texts: Sequence[str], *, max_words: int = 50) -> ListCheck:
    """Count destroyed fractions, and texts that a limit on words would cut.

    Parameters
    ----------
    texts : sequence of str
        Lists of ingredients, as they are trained on.
    max_words : int, default: 50
        Words that the reference's text processor keeps.

    Examples
    --------
    >>> print(check_lists(["12 cup of milk", "1/2 cup of milk, 3 cups of rice"], max_words=6))
    2 lists: 1 amounts look like destroyed fractions (1 are intact), in 1 lists; 1 lists have more than 6 words
    """
    found = [len(_DESTROYED.findall(text)) for text in texts]
    return ListCheck(
        len(texts),
        sum(found),
        sum(len(_INTACT.findall(text)) for text in texts),
        tuple(place for place, count in enumerate(found) if count),
        tuple(place for place, text in enumerate(texts) if len(text.split()) > max_words),
        max_words,
    )
