"""English nouns in the singular and in the plural."""

from __future__ import annotations

import re

__all__ = ["counted", "stem"]

_IRREGULAR = {
    "leaves": "leaf",
    "loaves": "loaf",
    "halves": "half",
    "knives": "knife",
    "mice": "mouse",
    "geese": "goose",
}
_PLURALS = {one: many for many, one in _IRREGULAR.items()} | {
    "potato": "potatoes",
    "tomato": "tomatoes",
    "mango": "mangoes",
}
_SINGULARS = {"chilies": "chili", "cookies": "cookie", "brownies": "brownie", "smoothies": "smoothie"}
"""What `stem`, which compares names, does not spell as a cook does."""
_MASSES = """asparagus bacon beef bread broccoli butter celery cheese chicken cinnamon corn fish flour garlic ginger ham
juice lamb lettuce meat milk oil pork rice salmon salt shrimp spinach sugar tofu tuna turkey water zest"""
_UNCOUNTED = frozenset(_MASSES.split())
_PLAIN = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+){0,3}")
_JOINT = re.compile(r"\b(?:and|or|of|in|with|for)\b", re.IGNORECASE)


def stem(word: str) -> str:
    """The singular of an English noun, by its ending.

    Examples
    --------
    >>> [stem(word) for word in ("tomatoes", "berries", "leaves", "radishes", "asparagus", "couscous", "cheese")]
    ['tomato', 'berry', 'leaf', 'radish', 'asparagus', 'couscous', 'cheese']
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is", "'s")):
        if word.endswith("ies") and len(word) > 4:
            return word[:-3] + "y"
        if word.endswith(("oes", "ches", "shes", "sses", "xes")):
            return word[:-2]
        return word[:-1]
    return word


def counted(name: str, several: bool) -> str:
    """The name of what is counted, its last noun in the singular, or in the plural of several.

    A name of several foods, and what is not counted by pieces, stays as it is.

    Examples
    --------
    >>> counted("eggs", False), counted("red onion", True), counted("Tomato", True), counted("garlic", True)
    ('egg', 'red onions', 'Tomatoes', 'garlic')
    >>> counted("eggs or egg whites", False)
    'eggs or egg whites'
    """
    if _JOINT.search(name) or not _PLAIN.fullmatch(name):
        return name
    first, blank, last = name.rpartition(" ")
    word = last.lower()
    one = _SINGULARS.get(word) or stem(word)
    if not several or word in _UNCOUNTED:
        made = one if not several else word
    else:
        made = word if one != word or word.endswith("s") else _plural(word)
    return name if made == word else first + blank + (made.capitalize() if last[0].isupper() else made)


def _plural(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("x", "z", "ch", "sh")) else "s")
