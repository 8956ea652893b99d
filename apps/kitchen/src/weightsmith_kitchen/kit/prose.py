"""What a line of a recipe is: an ingredient, a step, what the recipe makes, or text around it that is none of these."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.nutrition import measures
from weightsmith_kitchen.nutrition.ranking import rewritten, stems
from weightsmith_kitchen.phrases.amounts import is_measure
from weightsmith_kitchen.phrases.markup import unbulleted
from weightsmith_kitchen.quantity import Quantity, find_quantity, read_yield
from weightsmith_kitchen.steps.labels import techniques

__all__ = [
    "Made",
    "begins_with_amount",
    "has_measure",
    "is_about",
    "is_closing",
    "is_food",
    "is_step",
    "is_story",
    "left_out",
    "read_made",
    "read_people",
]

PEOPLE = frozenset(["serving", "servings", "portion", "portions", "person", "persons", "people", "serves"])
SHOWN = 3
"""Lines that are quoted where they are left out; the rest is counted."""
LONGEST = 60
"""Characters of such a line."""
_COMMAND = re.compile(
    r"\b(?:the|until|minutes?|mins?|hours?|into|together|well|over|with|heat|oven|aside|degrees)\b", re.IGNORECASE
)
_MEASURED = re.compile(r"\b(?:until|minutes?|mins?|hours?|heat|oven|degrees)\b", re.IGNORECASE)
_FOODS = "bread butter cream cube dash flour ice juice oil pepper pound quarter rice salt slice strip water zest"
NOUNS = frozenset(_FOODS.split())
"""Techniques that begin lines of ingredients more often than steps."""

# --- lines about the recipe -------------------------------------------------------------------------------------------

_MONTH = r"(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)[a-z]*\.?"
_ABOUT = re.compile(
    r"^\W*(?:"
    r"(?:prep(?:aration)?|cook(?:ing)?|bak(?:e|ing)|total|active|ready|rest(?:ing)?|chill(?:ing)?)\b[^:\d]{0,20}:.*"
    r"|(?:prep(?:aration)?|cook(?:ing)?|bak(?:e|ing)|total|active|rest(?:ing)?|chill(?:ing)?)\s+time\b.*"
    r"|(?:time|calories|kcal|nutrition|difficulty|course|cuisine|author|source|category|keywords?|rating)\s*:.*"
    r"|(?:recipe|words|text|photo(?:graph)?s?|pictures?|posted|submitted|contributed|written|published|shared|created"
    r"|tested|adapted|inspired|reprinted|styling)\s+(?:and\s+\w+\s+)?(?:by|from|courtesy)\b.*"
    r"|by\s+(?-i:[A-Z][\w.'-]*)(?:\s+(?:(?-i:[A-Z])[\w.'-]*|and|&|of|the|de|van|von)){0,6}"
    r"|(?:adapted|courtesy|reprinted|excerpted|copyright|all rights reserved)\b.*|\u00a9.*"
    r"|from (?:the kitchen|the recipe file|the book|the cookbook)\b.*"
    r"|(?:updated|published|posted|last updated)\s*(?:on\b|:).*"
    rf"|{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}}|\d{{1,2}}\.?\s+{_MONTH}\s+\d{{4}}"
    r"|(?:https?://|www\.)\S+"
    r"|(?:print|pin|share|save|jump to|rate|subscribe|advertisement|follow|leave a comment|watch)"
    r"(?:\s+(?:this|it|the|us|me|on|to|recipe|video|now|instagram|pinterest|facebook)){0,4}"
    r"|\d[\d.,]*k?\s*(?:(?:from|of|/)\s*\d[\d.,]*\s*)?(?:(?:votes?|ratings?|reviews?|comments?)\b.*|likes?|shares?|stars?|views?)"
    r"|(?:about\s+|approx\.?\s+)?\d[\d\s./\u00bc-\u00be-]*\s*(?:min(?:ute)?s?|hours?|hrs?|days?)"
    r"(?:\s+(?:(?:and\s+)?\d+\s*min(?:ute)?s?|total|prep|cook(?:ing)?|time))*"
    r"|\d{2,3}\s*(?:\u00b0|\u00ba|degrees?\b).*"
    r")\W*$",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"^\W*(?:(?:my\s+)?dear(?:est)?\s+(?-i:[A-Z])[^\d]{0,40}|(?:hi|hello|hey)(?:\s+(?-i:[A-Z])\w*){0,3}"
    r"|enjoy|bon app[e\u00e9]tit|p\.?\s?s\.?[:,\s].*|thank(?:s| you)\b[^\d]*|happy (?:baking|cooking)|xo(?:xo)*)\W*$",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"^\W*(?:(?:(?:with|much|all my|lots of)\s+)?love|(?:yours|sincerely)(?:\s+\w+)?|(?:best|kind|warm)(?:est)?"
    r"(?:\s+(?:wishes|regards))?|regards|cheers|hugs(?: and kisses)?|with kind regards)"
    r"(?P<name>,\s*(?-i:[A-Z])[^\d]{0,40}|,)?\W*$",
    re.IGNORECASE,
)

_STORY = """i we she he they my our was were had been i'm i've i'd we're we've loved loves hope promised ago"""
_LONE = frozenset(_STORY.split())
"""Words of a sentence that tells something: of no step, and not of a food that stands in a list."""
_SENTENCE = (
    """is isn't it's that's here's there's this these those don't didn't can't won't hopes remember always never"""
)
_TELLING = _LONE.difference("i").union(_SENTENCE.split())
"""Words of a sentence, or of a step, and not of a food that stands in a list."""
_REMARK = re.compile(r"\([^()]*\)|\([^()]*$")
_CLAUSE = re.compile(r"[,;(]|\s[-\u2013\u2014]\s")
_TOKEN = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")


def is_about(line: str) -> bool:
    """The line says something about the recipe: who wrote it, how long it takes, how it is rated.

    Examples
    --------
    >>> is_about("By Jane Doe"), is_about("Prep time: 10 minutes"), is_about("4.8 from 120 votes")
    (True, True, True)
    >>> is_about("by the handful: parsley"), is_about("10 minute rice"), is_about("2 stars anise")
    (False, False, False)
    """
    return _ABOUT.match(line) is not None or _LETTER.match(line) is not None


def is_closing(line: str) -> tuple[bool, bool]:
    """Whether the line ends a letter ("Love,"), and whether a name of its own may follow it.

    Examples
    --------
    >>> is_closing("Love,"), is_closing("Best wishes, Jane"), is_closing("lovage")
    ((True, True), (True, False), (False, False))
    """
    found = _CLOSING.match(line)
    return found is not None, found is not None and (found["name"] or ",").strip() == ","


def is_story(line: str, *, step: bool = False) -> bool:
    """The line is a sentence that tells something, and no food; with ``step``, no step either.

    Examples
    --------
    >>> is_story("My mother made this every Sunday."), is_story("The kids loved it!"), is_story("We had it in 1987")
    (True, True, True)
    >>> is_story("chocolate chips (I use dark)"), is_story("salt, as we like it"), is_story("2 cups flour")
    (False, False, False)
    >>> is_story("This is ready when it is brown.", step=True), is_story("I bake it for 20 minutes.", step=True)
    (False, False)
    """
    if begins_with_amount(line):
        return line.endswith((".", "!", "?")) and bool(_telling(_REMARK.sub(" ", line)) & _LONE)
    plain = _REMARK.sub(" ", unbulleted(line)).strip() if "(" in line else unbulleted(line)
    told = _telling(plain if step else _CLAUSE.split(plain, maxsplit=1)[0])
    if step:
        return (
            bool(told & _LONE) and not _MEASURED.search(plain) and techniques().keys().isdisjoint(plain.lower().split())
        )
    return bool(told & _TELLING) or "I" in _TOKEN.findall(plain)[:1] or (plain.endswith(("!", "?")) and " " in plain)


def _telling(text: str) -> set[str]:
    words = _TOKEN.findall(text.replace("\u2019", "'"))
    return {"i" if word == "I" else word.lower() if word.lower() != "i" else "" for word in words}


def left_out(lines: list[str]) -> tuple[str, ...]:
    """The note on lines that are no ingredient: the first ones quoted, the others counted; none of none.

    Examples
    --------
    >>> left_out(["By Jane Doe", "Enjoy!"]), left_out([])
    (("left out, no ingredient: 'By Jane Doe', 'Enjoy!'",), ())
    >>> left_out(["a", "b", "c", "d"])
    ("left out, no ingredient: 'a', 'b', 'c' and 1 more line",)
    """
    if not lines:
        return ()
    more = len(lines) - SHOWN
    quoted = ", ".join(repr(line if len(line) <= LONGEST else line[:LONGEST] + "...") for line in lines[:SHOWN])
    rest = f" and {more} more line{'s' if more > 1 else ''}" if more > 0 else ""
    return (f"left out, no ingredient: {quoted}{rest}",)


# --- what the recipe makes --------------------------------------------------------------------------------------------

_NUMBERS = "one|two|three|four|five|six|seven|eight|ten|twelve"
_SERVES = re.compile(
    r"^\W*(?:serves|servings?|portions?|feeds)\b\D{0,20}[\d\u00bc-\u00be]"
    rf"|^\W*(?:serves|feeds)\s+(?:{_NUMBERS})\b|^\W*[\d\u00bc-\u00be][\d\s/-]*(?:servings?|portions?|people|persons?)\W*$",
    re.IGNORECASE,
)
_FOR = re.compile(rf"\bfor\s+(\d+|{_NUMBERS})\s+(?:people|persons?)\b", re.IGNORECASE)
_MAKES = re.compile(
    r"(?P<before>^\W*(?:(?:this|the|it|each|one|recipe|batch)\s+){0,3}|[,;(.]\s*(?:it\s+|and\s+|or\s+)?)"
    r"(?:makes|yields?)\b\s*(?:is\s+)?[:=-]?\s*"
    r"(?:about|approximately|approx\.?|around|up to|roughly|some|at least)?\s*",
    re.IGNORECASE,
)
_DOZEN = re.compile(r"\s*dozen\b", re.IGNORECASE)
_THING = re.compile(r"\s*(?:of\s+)?(?P<thing>(?:\d[\w/]*[- ])?[^\W\d_][^,;.:()\[\]\d]*)?")
_ALSO = re.compile(
    r"(\d[\d\s/\u00bc-\u00be-]*?)\s*(?:large|small|generous)?\s*(?:servings?|portions?|people|persons?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Made:
    """What a line says that the recipe makes; None for what it does not say.

    Attributes
    ----------
    servings : Quantity or None
        People that it feeds.
    makes : tuple of Quantity and str, or None
        How many of what: 24 cookies, 1 loaf.
    """

    servings: Quantity | None
    makes: tuple[Quantity, str] | None

    def lacks(self, other: Made) -> bool:
        """The other one says something that this one does not."""
        return self.or_else(other) != self

    def or_else(self, other: Made) -> Made:
        """What both say; where they differ, what the first one says."""
        return Made(self.servings or other.servings, self.makes or other.makes)


def read_made(line: str) -> Made | None:
    """What a line says that the recipe makes, or for how many it is; None for any other line.

    Examples
    --------
    >>> read_made("Serves 4 to 6").servings, read_made("Makes about 2 dozen cookies").makes
    (Quantity('4-6'), (Quantity('24'), 'cookies'))
    >>> both = read_made("Serves 6 (makes 12 large muffins)")
    >>> both.servings, both.makes, read_made("2 cups flour")
    (Quantity('6'), (Quantity('12'), 'large muffins'), None)
    """
    serves = _SERVES.match(line)
    if serves is None and begins_with_amount(line):
        return None
    makes = _MAKES.search(line) if serves else _MAKES.match(line)
    people = None if makes or is_story(line) else _FOR.search(line)
    if not (serves or people or makes):
        return None
    thing = _thing(line, makes.end()) if makes else None
    servings = None
    if people:
        servings = read_people(people[1])
    elif serves:
        servings = read_people(line)
    if thing is not None and thing[1].split()[-1:] and thing[1].split()[-1].lower() in PEOPLE:
        servings, thing = servings or thing[0], None
    if servings is None and makes and (also := _ALSO.search(line, makes.end())):
        servings = read_people(also[1])
    if not serves and not people and thing is None and servings is None:
        return None
    return Made(servings, thing)


def _thing(line: str, start: int) -> tuple[Quantity, str] | None:
    try:
        found = find_quantity(line, start)
    except RecipeError:
        return None
    if found is None or not found[0].low > 0:
        return None
    amount, end = found[0], found[2]
    if dozen := _DOZEN.match(line, end):
        amount, end = amount * 12, dozen.end()
    match = _THING.match(line, end)
    thing = " ".join(((match["thing"] if match else None) or "").split()[:6])
    return amount, thing or ("piece" if amount.high <= 1 else "pieces")


def read_people(text: str, people: bool = True) -> Quantity | None:
    """A number of people that a text says, or a bare number where ``people`` are meant."""
    try:
        read = read_yield(text)
    except RecipeError:
        return None
    if read is None or not ((not read[1] and people) or read[1] in PEOPLE) or read[0].low <= 0:
        return None
    return read[0]


# --- ingredients and steps --------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def begins_with_amount(line: str) -> bool:
    """A number, or a word for one, comes first, after a bullet or none."""
    try:
        found = find_quantity(unbulleted(line))
    except RecipeError:
        return True
    return found is not None


def is_step(line: str) -> bool:
    """A sentence: long, and it ends as one, or has several; or it begins with what a cook does."""
    if unbulleted(line) != line or begins_with_amount(line):
        return False
    words = line.split()
    first = words[0].lower().strip(",.:;")
    command = line.endswith((".", "!")) or _COMMAND.search(line)
    if len(words) > 1 and first in techniques() and first not in NOUNS and command:
        return True
    return (len(words) >= 6 and (line.endswith((".", "!")) or ". " in line)) or len(words) > 18


def has_measure(line: str) -> bool:
    """The line begins with an amount, or has one with a unit: "flour - 2 cups"."""
    if begins_with_amount(line):
        return True
    return any(is_measure(word) for word in re.findall(r"\d\s*([^\W\d_]+)", line))


def is_food(line: str) -> bool:
    """The whole line is a food that household measures are known of: "salt"."""
    name = stems(rewritten(line))
    return any(name.stems == row.stems for _, row, _ in measures.rows())
