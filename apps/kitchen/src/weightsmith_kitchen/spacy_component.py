"""Ingredient labels as a component of a spaCy pipeline: ``nlp.add_pipe("recipe_ingredients")``.

It writes ``doc.spans["ingredients"]``: one span per name, quantity, unit and so on of each line of the text, with the
label of `IngredientTagger`. A span covers the spaCy tokens that its characters touch; the least probability of its
labels is in ``doc.spans["ingredients"].attrs["confidences"]``, in the order of the spans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacy.language import Language
from spacy.tokens import Doc, Span, SpanGroup
from spacy.util import minibatch

from weightsmith_kitchen.phrases.tagger import IngredientTagger, default_tagger

if TYPE_CHECKING:
    from weightsmith_kitchen.phrases.tagger import TaggedLine

__all__ = ["RecipeIngredients", "make_recipe_ingredients"]


class RecipeIngredients:
    """The component.

    Parameters
    ----------
    tagger : IngredientTagger
        What labels the lines.
    spans_key : str
        Name in ``doc.spans``.

    Examples
    --------
    >>> import spacy
    >>> nlp = spacy.blank("en")
    >>> _ = nlp.add_pipe("recipe_ingredients")
    >>> doc = nlp("2 cups sugar")
    >>> [(span.text, span.label_) for span in doc.spans["ingredients"]]
    [('2', 'QUANTITY'), ('cups', 'UNIT'), ('sugar', 'NAME')]
    """

    def __init__(self, tagger: IngredientTagger, spans_key: str) -> None:
        self.tagger, self.spans_key = tagger, spans_key

    def __call__(self, doc: Doc) -> Doc:
        """Label one text."""
        return next(self.pipe([doc]))

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 1000) -> Iterator[Doc]:
        """Label many texts, in batches."""
        for docs in minibatch(stream, size=batch_size):
            lines = [doc.text.split("\n") for doc in docs]
            tagged = iter(self.tagger.tag_many([line for group in lines for line in group]))
            for doc, group in zip(docs, lines, strict=True):
                self._write(doc, [next(tagged) for _ in group])
                yield doc

    def _write(self, doc: Doc, lines: Iterable[TaggedLine]) -> None:
        spans: list[Span] = []
        confidences: list[float] = []
        start = 0
        for line in lines:
            for span in line.spans:
                found = doc.char_span(start + span.start, start + span.end, span.label, alignment_mode="expand")
                if found is not None:
                    spans.append(found)
                    confidences.append(span.confidence)
            start += len(line.text) + 1
        doc.spans[self.spans_key] = SpanGroup(doc, name=self.spans_key, spans=spans, attrs={"confidences": confidences})

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Write the tagger into a folder, as a pipeline's ``to_disk`` asks for it."""
        self.tagger.save_pretrained(path, overwrite=True)

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> RecipeIngredients:
        """Read the tagger that `to_disk` wrote."""
        self.tagger = IngredientTagger.from_pretrained(path)
        return self


@Language.factory("recipe_ingredients", default_config={"folder": None, "spans_key": "ingredients"})
def make_recipe_ingredients(nlp: Language, name: str, folder: str | None, spans_key: str) -> Any:
    """The component, with the tagger of a folder or the one that ships."""
    tagger = default_tagger() if folder is None else IngredientTagger.from_pretrained(folder)
    return RecipeIngredients(tagger, spans_key)
