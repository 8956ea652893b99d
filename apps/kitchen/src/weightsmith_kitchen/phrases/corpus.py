"""Read labeled phrases: a token and its tag per line, a blank line between phrases."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from weightsmith_kitchen.errors import RecipeError

from .spans import OUTSIDE

__all__ = ["MajorityTagger", "read_tagged"]


def read_tagged(path: str | Path) -> tuple[list[list[str]], list[list[str]]]:
    """Tokens and tags of a file of ``token<TAB>tag`` lines.

    A line without token and tag ends a phrase. Only tabs separate: a token may hold a no-break space.

    Parameters
    ----------
    path : path
        A UTF-8 file.

    Returns
    -------
    tokens, tags : list of list of str
        One list per phrase.

    Raises
    ------
    RecipeError
        If the file cannot be read, is in another encoding (named if it has a mark), or a line has not two fields.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        marked = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        found = "UTF-16" if marked else f"byte {data[error.start]:#04x} at {error.start}"
        raise RecipeError(f"{path}: encoding", found=found, expected="UTF-8", do="Convert the file.") from error
    tokens: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line.strip(" \t\r"):
            if tokens[-1]:
                tokens.append([])
                tags.append([])
            continue
        fields = line.split("\t")
        if len(fields) != 2 or not all(fields):
            raise RecipeError(f"{path}, line {number}", found=repr(line), expected="a token, a tab and a tag")
        tokens[-1].append(fields[0])
        tags[-1].append(fields[1])
    if not tokens[-1]:
        tokens.pop()
        tags.pop()
    return tokens, tags


class MajorityTagger:
    """Gives each token its most frequent tag in the training phrases, else ``O``: the baseline of any tagger.

    Examples
    --------
    >>> MajorityTagger().fit([["1", "egg"]], [["QUANTITY", "NAME"]]).predict([["1", "leek"]])
    [['QUANTITY', 'O']]
    """

    def fit(self, tokens: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> MajorityTagger:
        """Count; of equally frequent tags the first seen counts."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for words, names in zip(tokens, tags, strict=True):
            for word, name in zip(words, names, strict=True):
                counts[word][name] += 1
        self.tags_ = {word: names.most_common(1)[0][0] for word, names in counts.items()}
        return self

    def predict(self, tokens: Sequence[Sequence[str]]) -> list[list[str]]:
        """The tag of each token."""
        return [[self.tags_.get(word, OUTSIDE) for word in words] for words in tokens]
