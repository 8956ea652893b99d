"""Words of a text with their offsets, and the form in which words are compared.

A text is never rewritten: each token knows where it stands, so that what is found can be shown in place, whatever
quotes, accents, tabs or line ends the text has.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

__all__ = ["Token", "plain", "segments", "tokenize"]

# A word with its combining marks; a hyphen at the end of a line that splits a word; any other character by itself.
_TOKEN = re.compile(
    r"[^\W_](?:[^\W_]|[\u0300-\u036f\u200d])*(?:-[ \t]*\r?\n[ \t]*(?=[^\W\d_])[^\W_]+)?(?:['’](?:s|S)\b)?"
    r"|(?:\r?\n[ \t]*){2,}|[^\s]"
)
_BROKEN = re.compile(r"-[ \t]*\r?\n[ \t]*")
_WORD = re.compile(r"[^\W_]")
_BARRIERS = frozenset(".!;:?()[]{}")
# Between the words of a name these carry no meaning: "short-stature" is "short stature".
_JOINTS = frozenset("-/‐‑‒–'\"’‘“”`´")


class Token(NamedTuple):
    """A word or sign and where it stands: ``text[start:end]``."""

    start: int
    end: int
    form: str


def tokenize(text: str) -> list[Token]:
    r"""Split a text into words and signs.

    Examples
    --------
    >>> [token.form for token in tokenize("He has short-stature/obesity.")]
    ['he', 'has', 'short', '-', 'stature', '/', 'obesity', '.']
    >>> [token.form for token in tokenize("cone-shaped epi-\nphyses")]
    ['cone', '-', 'shaped', 'epiphyses']
    """
    return [Token(match.start(), match.end(), plain(match.group())) for match in _TOKEN.finditer(text)]


def segments(tokens: list[Token]) -> list[list[Token]]:
    """Runs of words that a name can stretch over: a sentence's end, a bracket, a colon or a blank line ends a run.

    Hyphens, slashes and quotes are dropped, so the words around them stand beside each other.
    """
    runs: list[list[Token]] = [[]]
    for token in tokens:
        if token.form in _BARRIERS or not token.form:
            if runs[-1]:
                runs.append([])
        elif token.form not in _JOINTS:
            runs[-1].append(token)
    return runs if runs[-1] else runs[:-1]


@lru_cache(maxsize=1 << 17)
def plain(word: str) -> str:
    """Lower case, without accents, ligatures, possessive ``'s`` or a line break's hyphen."""
    if word.isascii() and word.isalpha():
        return word.lower()
    word = unicodedata.normalize("NFKD", _BROKEN.sub("", word)).casefold().strip()
    if word[-2:] in ("'s", "’s"):
        word = word[:-2]
    return "".join(character for character in word if not unicodedata.combining(character))
