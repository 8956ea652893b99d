"""Word forms, and what English and Latin say about words before any ontology is read.

``lexicon.txt`` beside this file has one group of interchangeable words per line, such as ``kidney renal nephric``. It
holds general language, no ids and no names of concepts.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import snowballstemmer

__all__ = [
    "CONJUNCTIONS",
    "COPULAS",
    "FUNCTION_WORDS",
    "LINKS",
    "OTHER_MEANINGS",
    "code",
    "lemma",
    "lexicon",
    "plain",
    "stem",
]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


LINKS = _set("of the a an in on with to and or by for from at as due is are both into within its their his her s")
"""Words that carry no meaning of their own between the words of a name."""

FUNCTION_WORDS = _set(
    """with without is are was were be been being is has have had do does did not no nor as at by for from than that
    this these those which who whose whom when where while and or but if into within between among during after before
    also including include includes such may can could might will would should their his her its our he she they we it
    i you characterized consisting associated both either neither due because via per about other more most very well
    only all any each some due then there here until since against under over through toward towards upon onto however
    although though whereas whether versus vs showed shows shown show had having presented presenting developed found
    reported described revealed demonstrated noted observed suggest suggests suggested"""
)
"""Words that a name does not stretch over, unless the name itself has them."""

CONJUNCTIONS = frozenset(("and", "or"))

COPULAS = frozenset(("is", "are", "was", "were", "appeared", "appears", "appear", "remained", "became"))

OTHER_MEANINGS = (
    *(f"{when} fall" for when in ("last", "this", "next", "early", "late", "every")),
    "fall semester",
    *("stroke volume", "stroke work", "heat stroke", "breast stroke", "two stroke"),
    *("electric shock", "dc shock", "heat shock", "shock wave", "shock therapy", "electroconvulsive shock"),
    *("marrow aspiration", "needle aspiration", "aspiration biopsy", "aspiration cytology"),
    *("collecting duct", "collecting system", "collecting tubule", "blood spot", "organic acid analysis"),
    *("fit and well", "good fit", "goodness of fit"),
)
"""Phrases in which a word that names a finding means something else."""

_LEXICON = Path(__file__).parent / "lexicon.txt"
_stemmer = snowballstemmer.stemmer("english")


_BRITISH = re.compile(r"(?<=[a-z])(?:ae|oe)(?=[a-z])|^(?:ae|oe)(?=[dst])|^(?:haem|oest)")
_AMERICAN = {"tumour": "tumor", "colour": "color", "behaviour": "behavior", "odour": "odor", "fibre": "fiber"} | {
    "centre": "center",
    "goitre": "goiter",
    "litre": "liter",
    "sulph": "sulf",
    "leuco": "leuko",
}
_ISE = re.compile(r"(?<=[a-z]{4})is(?=(?:e|ed|es|ing|ation|ations)$)")


@lru_cache(maxsize=1 << 17)
def plain(word: str) -> str:
    """Lower case, without accents and ligatures, in American spelling.

    Examples
    --------
    >>> [plain(word) for word in ("Sjögren", "anaemia", "Generalised", "tumours", "fistulae")]
    ['sjogren', 'anemia', 'generalized', 'tumors', 'fistulae']
    """
    if word.isascii():
        word = word.lower()
    else:
        decomposed = unicodedata.normalize("NFKD", word.replace("æ", "ae").replace("œ", "oe")).casefold()
        word = "".join(character for character in decomposed if not unicodedata.combining(character)).strip()
    if "ae" in word or "oe" in word:
        word = _BRITISH.sub(
            lambda match: match.group()[1:] if match.group() in ("ae", "oe") else _INITIAL[match.group()], word
        )
    for british, american in _AMERICAN.items():
        if british in word:
            word = word.replace(british, american)
    return _ISE.sub("iz", word)


_INITIAL = {"haem": "hem", "oest": "est"}


_PLURALS = (
    ("oses", "osis"),
    ("mata", "ma"),
    ("ae", "a"),
    ("stases", "stasis"),
    ("physes", "physis"),
    ("nevi", "nevus"),
)


@lru_cache(maxsize=1 << 17)
def lemma(form: str) -> str:
    """The singular of an English or a common Latin plural.

    Examples
    --------
    >>> [lemma(word) for word in ("seizures", "anomalies", "masses", "stenosis", "exostoses", "fistulae", "fibromata")]
    ['seizure', 'anomaly', 'mass', 'stenosis', 'exostosis', 'fistula', 'fibroma']
    """
    for plural, singular in _PLURALS:
        if form.endswith(plural) and len(form) > len(plural) + 2:
            return form[: -len(plural)] + singular
    if len(form) > 4 and form.endswith("ies"):
        return form[:-3] + "y"
    if len(form) > 4 and form.endswith(("sses", "shes", "ches", "xes")):
        return form[:-2]
    if len(form) > 3 and form.endswith("s") and not form.endswith(("ss", "us", "is")):
        return form[:-1]
    return form


@lru_cache(maxsize=1 << 17)
def stem(form: str) -> str:
    """The word without inflection and derivation, by the Porter2 algorithm."""
    return _stemmer.stemWord(form)


@lru_cache(maxsize=1 << 17)
def code(word: str) -> int:
    """64 bits for a word, the same in every process and release."""
    return int.from_bytes(blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


@lru_cache(maxsize=1)
def lexicon() -> tuple[tuple[float, tuple[str, ...]], ...]:
    """Groups of words that stand for each other in names of findings, each with its reliability."""
    groups = []
    reliability = 1.0
    for line in _LEXICON.read_text("utf-8").splitlines():
        if line.startswith("="):
            reliability = float(line[1:])
        elif line and not line.startswith("#"):
            groups.append((reliability, tuple(map(plain, line.split()))))
    return tuple(groups)
