from .document import Document as Document, Mention as Mention, Passage as Passage
from .errors import (
    CorpusError as CorpusError,
    OntologyError as OntologyError,
    PhenotypeError as PhenotypeError,
    TaggerError as TaggerError,
)
from .metrics import Evaluation as Evaluation, evaluate as evaluate
from .ontology import HPO_ROOT as HPO_ROOT, Ontology as Ontology, Synonym as Synonym, Term as Term
from .tagger import PhenoTagger as PhenoTagger, Settings as Settings

__version__: str
