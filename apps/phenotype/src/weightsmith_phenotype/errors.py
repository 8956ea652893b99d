"""What can go wrong, by name. Every message says what was found, what was expected and what to do."""

from weightsmith.core.errors import WeightsmithError

__all__ = ["CorpusError", "OntologyError", "PhenotypeError", "TaggerError"]


class PhenotypeError(WeightsmithError):
    """Base of the errors of this package."""


class OntologyError(PhenotypeError):
    """An ontology that cannot be read or used, or an id that it does not have."""


class TaggerError(PhenotypeError):
    """A saved tagger that cannot be loaded or does not fit the ontology, or settings that a tagger cannot have."""


class CorpusError(PhenotypeError):
    """A document or corpus that is not in the format it was said to be in."""
