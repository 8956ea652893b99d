"""Clinical text to terms of the Human Phenotype Ontology, or of any ontology in an OBO file.

The tagger learns from the ontology alone: its names and synonyms. It needs no annotated text and no network.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
