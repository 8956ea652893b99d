"""What one process does with a shard: tag its documents, write them as text, and name those that fail."""

from __future__ import annotations

import json
import pickle
import warnings
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, cast

from weightsmith_phenotype.corpus import Failure
from weightsmith_phenotype.document import Document, Mention
from weightsmith_phenotype.errors import CorpusError, TaggerError
from weightsmith_phenotype.formats import FORMATS, CorpusNotice, OffsetUnit, WriteOptions
from weightsmith_phenotype.ontology import Ontology
from weightsmith_phenotype.shards import Done, Shard, ShardFolder

__all__ = ["OutputSettings", "PickledTagger", "Tagger", "stamp", "tag_shard"]


class Tagger(Protocol):
    """What finds mentions in a text, as `PhenoTagger` does. It must be picklable to be used in several processes."""

    ontology: Ontology

    def tag(self, text: str) -> list[Mention]:
        """Find the concepts that a text mentions, by place."""
        ...


def stamp(tagger: Tagger) -> dict[str, str]:
    """What the mentions that a tagger finds follow from: this package's version, the ontology, the tagger itself."""
    from weightsmith_phenotype import __version__

    ontology = tagger.ontology
    return {
        "package": f"weightsmith-phenotype {__version__}",
        "ontology": f"{ontology.name} {ontology.version}".strip(),
        "concepts": ontology.fingerprint,
        "tagger": f"{type(tagger).__name__} {getattr(tagger, 'fingerprint', '')}".strip(),
    }


@dataclass(frozen=True, slots=True)
class OutputSettings:
    """What the output follows from, beside documents and tagger; sent to every process."""

    format: str
    as_files: bool
    include_negated: bool
    offset_unit: OffsetUnit
    created: datetime


@dataclass(frozen=True, slots=True)
class PickledTagger:
    """A tagger in a file, loaded once per process.

    Attributes
    ----------
    path : str
        The file.
    digest : str
        SHA-256 of its content. Another content is refused, since unpickling runs what a file says. It also tells this
        run from an earlier one that wrote the same file: joblib keeps processes from one run to the next.
    """

    path: str
    digest: str

    @classmethod
    def write(cls, tagger: Tagger, path: Path) -> PickledTagger:
        """Write a tagger to a file."""
        raw = pickle.dumps(tagger, protocol=5)
        path.write_bytes(raw)
        return cls(str(path), sha256(raw).hexdigest())

    def load(self) -> Tagger:
        """The tagger, read when a process asks for it first."""
        if _loaded.get("digest") != self.digest:
            raw = Path(self.path).read_bytes()
            if sha256(raw).hexdigest() != self.digest:
                raise TaggerError(f"{self.path} was changed by another program")
            _loaded.update(digest=self.digest, tagger=pickle.loads(raw))
        return cast(Tagger, _loaded["tagger"])


_loaded: dict[str, Any] = {}


def tag_shard(holder: Tagger | PickledTagger, settings: OutputSettings, folder: Path | None, shard: Shard) -> Done:
    """Tag the documents of a shard and write them as text; a document that fails does not stop the rest.

    With a folder the text is kept in it and not handed back: so it need not pass from process to process.
    """
    tagger = holder.load() if isinstance(holder, PickledTagger) else holder
    chosen = FORMATS[settings.format]
    options = WriteOptions(tagger.ontology, settings.created, settings.include_negated, settings.offset_unit)
    done = Done(shard.number, shard.digest(), failures=list(shard.failures))
    bodies = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CorpusNotice)
        for file, identifier, text, passages in shard.items:
            try:
                document = Document(identifier, text, tuple(tagger.tag(text)), passages)
                if settings.as_files and chosen.files is not None:
                    files = chosen.files(document, options)
                    body = "".join(json.dumps([name, content]) + "\n" for name, content in files.items())
                else:
                    body = chosen.render(document, options) if chosen.render is not None else ""
                bodies.append(body.encode("utf-8"))
            except Exception as error:  # whatever a tagger does with one text, the others are tagged
                message = str(error) if isinstance(error, CorpusError) else f"{type(error).__name__}: {error}"
                done.failures.append(Failure(file, message, identifier))
                continue
            done.documents += 1
            done.mentions += len(document.mentions)
            if not (chosen.carries_flags or settings.include_negated):
                done.left_out += sum(not mention.asserted for mention in document.mentions)
    done.body = b"".join(bodies)
    done.notices = [str(item.message) for item in caught]
    if folder is not None:
        ShardFolder(folder).save(done)
        done.body = b""
    return done
