"""How people say corrections of a list: "no butter", "oil instead of butter", "replace milk by water", "add 2 eggs"."""

from __future__ import annotations

import re

__all__ = ["ADD", "INSTEAD", "REPLACE", "VERBS", "WITHOUT", "parts"]

VERBS = (
    r"no|without|remove|leave out|skip|drop|omit|add|use|replace|swap|double|triple|halve|half|twice|for|make|serves?"
)
# "and" parts two corrections only before a new amount or a new verb: "salt and pepper" is one food.
_BETWEEN = re.compile(
    rf"[;\n]|,(?!\d)|(?<=[a-z])\.(?:\s|$)|\bthen\b|\bbut\b|\band\b(?=\s+(?:\d|(?:{VERBS})\b))",
    re.IGNORECASE,
)
_POLITE = re.compile(r"\b(?:please|pls|kindly|thanks|thank you|can you|could you|would you)\b", re.IGNORECASE)

WITHOUT = re.compile(
    r"^(?:there (?:is|are|was|were) )?(?:no|without(?: any)?|remove|leave out|skip|drop|omit|delete|take out|take away"
    r"|i (?:have|want|used?) no)\s+(?:the |any |all )?(?P<old>.+)$",
    re.IGNORECASE,
)
INSTEAD = re.compile(
    r"^(?:use |with |take |it was |it's |there (?:is|are) )?(?P<new>.+?)"
    r"\s+(?:instead of|not|rather than|in place of)\s+(?P<old>.+)$",
    re.IGNORECASE,
)
REPLACE = re.compile(
    r"^(?:replace|swap|substitute|exchange|change)\s+(?:the )?(?P<old>.+?)\s+(?:with|by|for|to|into)\s+(?P<new>.+)$",
    re.IGNORECASE,
)
ADD = re.compile(r"^(?:add|plus|and|also|with|put in|include)\s+(?P<new>.+)$", re.IGNORECASE)


_ADDS = re.compile(r"^(?:add|plus|also|put in|include)\s", re.IGNORECASE)
_AMOUNT = re.compile(r"[\d\u00bc-\u00be\u2150-\u215e]")
_COUNTS = re.compile(r"^\S+(?:\s\d/\d)?\s+(?:people|persons?|servings?|portions?)$", re.IGNORECASE)


def parts(text: str) -> list[str]:
    """The corrections of a text, in order, without "please"; what "add" has before it is added, up to the last "and".

    Examples
    --------
    >>> parts("2 eggs instead of 1, please, and no salt and pepper.")
    ['2 eggs instead of 1', 'no salt and pepper']
    >>> parts("add 2 bananas and 1 cup oats"), parts("add 1 banana and 2 eggs instead of 3")
    (['add 2 bananas', 'add 1 cup oats'], ['add 1 banana', '2 eggs instead of 3'])
    """
    made: list[str] = []
    start, joined = 0, False
    for end, stop in [*(found.span() for found in _BETWEEN.finditer(text)), (len(text), len(text))]:
        part = " ".join(_POLITE.sub(" ", text[start:end]).split()).strip(" .!?")
        if part:
            adds = joined and made and _ADDS.match(made[-1]) and _AMOUNT.match(part)
            bare = not (INSTEAD.match(part) or _COUNTS.match(part))
            made.append(f"add {part}" if adds and bare else part)
            joined = False
        joined = joined or text[end:stop].strip().lower() == "and"
        start = stop
    return made
