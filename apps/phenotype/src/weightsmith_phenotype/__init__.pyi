from .document import Document as Document, Mention as Mention, Passage as Passage
from .errors import (
    CorpusError as CorpusError,
    OntologyError as OntologyError,
    PhenotypeError as PhenotypeError,
    TaggerError as TaggerError,
)
from .ontology import HPO_ROOT as HPO_ROOT, Ontology as Ontology, Synonym as Synonym, Term as Term
from .tagger import PhenoTagger as PhenoTagger

__version__: str
