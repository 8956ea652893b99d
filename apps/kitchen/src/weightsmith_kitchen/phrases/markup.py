"""The text of a line without the marks of Markdown and of HTML that stand within it: "*1* cup", "**2** eggs"."""

from __future__ import annotations

import re

__all__ = ["unbulleted", "unmarked"]

_BULLET = re.compile(
    r"^\s*(?:(?:[-*\u2022\u00b7\u2023\u25e6\u2013]|\[[ x]?\])\s+|(?:[\u25a0-\u27bf\U0001f300-\U0001faff]\ufe0f?\s*)+)"
)
_MARKS = frozenset("*_`[\\<>")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\((?:[^()\s]*)(?:\s+\"[^\"]*\")?\)")
_STARS = re.compile(r"(\*{1,3})(?=[^\s*.,;:!?)])([^*]+?)(?<=\S)\1")
_LINES = re.compile(r"(?<!\w)(_{1,3})(?=[^\s_.,;:!?)])([^_]+?)(?<=\S)\1(?!\w)")
_CODE = re.compile(r"`([^`]+)`")
_QUOTE = re.compile(r"^\s*>+\s+")
_RAISED = re.compile(r"<sup\b[^<>]*>", re.IGNORECASE)
"""Before the numerator of a fraction: 1<sup>1</sup>/<sub>2</sub>."""
_INLINE = re.compile(r"</?(?:b|i|em|strong|u|span|sup|sub|small|mark|a)\b[^<>]*>", re.IGNORECASE)
_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+\-.!>~|/])")


def unmarked(line: str) -> str:
    r"""Remove emphasis, links, code marks, quotation marks and backslashes of Markdown, and inline elements of HTML.

    Bullets, headings and the bars of tables stay, and so does an asterisk that points to a footnote.

    Examples
    --------
    >>> unmarked("- **2** eggs, _beaten_"), unmarked("*1*cup [flour](https://example.org)"), unmarked("* 2 eggs*")
    ('- 2 eggs, beaten', '1cup flour', '* 2 eggs*')
    >>> unmarked("1<sup>1</sup>/<sub>2</sub> cups"), unmarked(r"1\. 2 eggs")
    ('1 1/2 cups', '1. 2 eggs')
    """
    if _MARKS.isdisjoint(line):
        return line
    made = _LINK.sub(r"\1", _QUOTE.sub("", _INLINE.sub("", _RAISED.sub(" ", line))))
    for _ in range(2):  # "***2** eggs*"
        made = _LINES.sub(r"\2", _STARS.sub(r"\2", made))
    return _ESCAPED.sub(r"\1", _CODE.sub(r"\1", made))


def unbulleted(line: str) -> str:
    """Remove the mark of a list before a line.

    Examples
    --------
    >>> unbulleted("- 2 eggs"), unbulleted("[x] 1 onion"), unbulleted("-1 egg")
    ('2 eggs', '1 onion', '-1 egg')
    """
    return _BULLET.sub("", line)
