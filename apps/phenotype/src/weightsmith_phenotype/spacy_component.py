"""PhenoTagger as a component of a spaCy pipeline: ``nlp.add_pipe("phenotype_tagger")``.

It writes ``doc.spans["hpo"]``. Each span has the concept's id in ``span.kb_id_``, the label ``"PHENOTYPE"``, and what
`Mention` holds in ``span._``: ``negated``, ``family``, ``uncertain``, ``score``, ``concept_name``, ``mention_source``,
and ``mention_start`` and ``mention_end``, the exact offsets, which may lie inside a token.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacy.language import Language
from spacy.tokens import Doc, Span, SpanGroup
from spacy.util import minibatch

from weightsmith_phenotype.document import Mention
from weightsmith_phenotype.errors import TaggerError

if TYPE_CHECKING:
    from weightsmith_phenotype.tagger import PhenoTagger

__all__ = ["PhenotypeComponent", "make_phenotype_tagger"]

LABEL = "PHENOTYPE"
"""One label for all spans, as displays and rules choose by label; the concept's name is ``span._.concept_name``."""

_FIELDS = {
    "negated": "negated",
    "family": "family",
    "uncertain": "uncertain",
    "score": "score",
    "concept_name": "name",
    "mention_source": "source",
    "mention_start": "start",
    "mention_end": "end",
}
_USER_DATA = "phenotype_tagger"
_SETTINGS = "phenotype_tagger.json"
_FOLDER = "tagger"


def _read(field: str, span: Span) -> Any:
    mentions: dict[str, dict[str, Any]] = span.doc.user_data.get(_USER_DATA, {})
    return mentions.get(_key(span), {}).get(field)


def _key(span: Span) -> str:
    # By concept too: spaCy's own extensions are shared by all spans over the same words.
    return f"{span.start_char}:{span.end_char}:{span.kb_id_}"


def _register(prefix: str) -> None:
    """Add the extension attributes to `Span`, once; refuse a name that another component took."""
    for name, field in _FIELDS.items():
        taken = Span.get_extension(prefix + name) if Span.has_extension(prefix + name) else None
        getter = partial(_read, field)
        if taken is None:
            Span.set_extension(prefix + name, getter=getter)
        elif not (isinstance(taken[2], partial) and taken[2].func is _read):
            raise TaggerError(
                f"span._.{prefix + name}",
                found="an extension of another component",
                do='Set the prefix of ours: nlp.add_pipe("phenotype_tagger", config={"prefix": "phenotype_"}).',
            )


class PhenotypeComponent:
    """Tags documents; the tagger is loaded when the first document comes.

    Parameters
    ----------
    tagger : path, PhenoTagger or None
        A saved tagger's folder, a tagger, or None for `PhenoTagger.default`.
    name : str
        The component's name in the pipeline.
    spans_key : str
        Where in ``doc.spans`` the mentions go.
    prefix : str
        What the names of the extension attributes begin with.

    Raises
    ------
    TaggerError
        If another component has registered an extension of the same name.
    """

    def __init__(
        self,
        tagger: str | Path | PhenoTagger | None = None,
        *,
        name: str = "phenotype_tagger",
        spans_key: str = "hpo",
        prefix: str = "",
    ) -> None:
        self.name, self.spans_key, self.prefix = name, spans_key, prefix
        self._given = tagger
        self._tagger: PhenoTagger | None = None
        _register(prefix)

    @property
    def tagger(self) -> PhenoTagger:
        """The tagger, loaded on first use."""
        if self._tagger is None:
            from weightsmith_phenotype.tagger import PhenoTagger, default_tagger

            if self._given is None:
                self._tagger = default_tagger()
            elif isinstance(self._given, str | Path):
                self._tagger = PhenoTagger.from_pretrained(self._given)
            else:
                self._tagger = self._given
        return self._tagger

    def __call__(self, doc: Doc) -> Doc:
        """Write the mentions of a document into it."""
        return self._write(doc, self.tagger.tag(doc.text))

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 64) -> Iterator[Doc]:
        """Tag documents in batches. A document that fails goes to the pipeline's error handler, alone."""
        handle = self.get_error_handler()
        for batch in minibatch(stream, size=batch_size):
            docs = list(batch)
            try:
                found = list(self.tagger.tag_many([doc.text for doc in docs]))
            except Exception:
                yield from self._one_by_one(docs, handle)
            else:
                for doc, mentions in zip(docs, found, strict=True):
                    yield self._write(doc, mentions)

    def set_error_handler(self, error_handler: Callable[..., None]) -> None:
        """Set what is called with a document that cannot be tagged."""
        self._error_handler = error_handler

    def get_error_handler(self) -> Callable[..., None]:
        """What is called with a document that cannot be tagged."""
        return getattr(self, "_error_handler", _raise)

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Save the settings and, unless it is the default one, the tagger. What stands there is replaced.

        The default tagger is not saved: where the pipeline is loaded, that machine's default is used.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / _FOLDER
        if self._given is not None and not self._is_at(target):
            fresh = folder / f"{_FOLDER}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            self.tagger.save_pretrained(fresh)
            shutil.rmtree(target, ignore_errors=True)
            fresh.rename(target)
        settings = {"spans_key": self.spans_key, "prefix": self.prefix, "default": self._given is None}
        temporary = folder / f"{_SETTINGS}.tmp"
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / _SETTINGS)

    def _is_at(self, folder: Path) -> bool:
        return isinstance(self._given, str | Path) and folder.exists() and folder.samefile(self._given)

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> PhenotypeComponent:
        """Load what `to_disk` saved. The tagger itself is loaded when the first document comes."""
        file = Path(path) / _SETTINGS
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
            self.spans_key, self.prefix = settings["spans_key"], settings["prefix"]
            self._given = None if settings["default"] else Path(path) / _FOLDER
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TaggerError(f"{file}", found=repr(error), expected="settings that to_disk wrote") from error
        self._tagger = None
        _register(self.prefix)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the loaded tagger where it can be loaded again, so that worker processes start small."""
        state = dict(self.__dict__)
        state["_tagger"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _register(self.prefix)

    def _one_by_one(self, docs: list[Doc], handle: Callable[..., None]) -> Iterator[Doc]:
        for doc in docs:
            try:
                tagged = self(doc)
            except Exception as error:
                handle(self.name, self, [doc], error)
            else:
                yield tagged

    def _write(self, doc: Doc, mentions: Iterable[Mention]) -> Doc:
        group = SpanGroup(doc, name=self.spans_key)
        held: dict[str, dict[str, Any]] = {}
        for mention in mentions:
            # A mention that begins or ends inside a token takes the whole token; its own offsets are kept beside.
            span = doc.char_span(
                mention.start, mention.end, label=LABEL, kb_id=mention.concept_id, alignment_mode="expand"
            )
            if span is None:
                raise TaggerError(
                    f"mention {mention.text!r} of {mention.concept_id}",
                    found=f"[{mention.start}, {mention.end}]",
                    expected=f"offsets within the document's {len(doc.text)} characters",
                )
            key = _key(span)
            # Two mentions of one concept in one token: the better one speaks for it.
            if key not in held or held[key]["score"] < mention.score:
                held[key] = {name: value for name, value in asdict(mention).items() if name != "text"}
            group.append(span)
        doc.spans[self.spans_key] = group
        doc.user_data.setdefault(_USER_DATA, {}).update(held)
        return doc


def _raise(name: str, component: Any, docs: list[Doc], error: Exception) -> None:
    raise error


@Language.factory(
    "phenotype_tagger",
    default_config={"tagger": None, "spans_key": "hpo", "prefix": ""},
    assigns=["doc.spans"],
)
def make_phenotype_tagger(
    nlp: Language, name: str, tagger: str | None, spans_key: str, prefix: str
) -> PhenotypeComponent:
    """Build the component for ``nlp.add_pipe("phenotype_tagger", config={...})``.

    Parameters
    ----------
    nlp : Language
        The pipeline.
    name : str
        The component's name in it.
    tagger : str or None
        A saved tagger's folder, or None for the one of the Human Phenotype Ontology.
    spans_key : str
        Where in ``doc.spans`` the mentions go.
    prefix : str
        What the names of the extension attributes begin with, if another component uses the same names.
    """
    return PhenotypeComponent(tagger, name=name, spans_key=spans_key, prefix=prefix)
