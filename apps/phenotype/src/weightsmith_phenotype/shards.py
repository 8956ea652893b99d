"""What a run over a corpus keeps beside its output until it is done: tagged shards, and what they follow from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from weightsmith.core.io import read_json
from weightsmith_phenotype.corpus import Failure
from weightsmith_phenotype.document import Passage
from weightsmith_phenotype.errors import CorpusError

__all__ = ["AGAIN", "Done", "Shard", "ShardFolder"]

MANIFEST, INPUTS = "run.json", "inputs.txt"
AGAIN = "Put them back, or start again with --overwrite."


@dataclass(slots=True)
class Shard:
    """Documents that one process tags at a time.

    Attributes
    ----------
    number : int
        Place among the shards of the corpus, from 0.
    items : list of tuple
        File, id, text and passages of each document.
    failures : list of Failure
        What could not be read between them.
    characters : int
        Length of all texts.
    """

    number: int
    items: list[tuple[str, str, str, tuple[Passage, ...]]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    characters: int = 0

    def digest(self) -> str:
        """Hash of all that the shard's output follows from, other than the tagger."""
        found = sha256()
        for file, identifier, text, _ in self.items:
            for part in (file, identifier, text):
                raw = part.encode("utf-8", "surrogatepass")
                found.update(f"{len(raw)}:".encode() + raw)
        for failure in self.failures:
            found.update(f"!{failure.file}\0{failure.document}\0".encode("utf-8", "surrogatepass"))
        return found.hexdigest()


@dataclass(slots=True)
class Done:
    """A tagged shard: counts, what failed, and the text that goes to the output.

    Attributes
    ----------
    number : int
        Number of the shard.
    digest : str
        Of the documents, as `Shard.digest` has it.
    documents, mentions : int
        How many were tagged and found.
    left_out : int
        Mentions that the format cannot mark as negated, of a relative or uncertain.
    failures : list of Failure
        Documents that could not be tagged or written.
    notices : list of str
        What was written in another way than it was found.
    body : bytes
        Text of the output.
    """

    number: int
    digest: str
    documents: int = 0
    mentions: int = 0
    left_out: int = 0
    failures: list[Failure] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    body: bytes = b""


class ShardFolder:
    """A folder with one file per tagged shard, each written whole or not at all.

    Parameters
    ----------
    folder : Path
        It is there, and no other process writes into it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def begun(self) -> bool:
        """A run has begun here and was not finished."""
        return (self.folder / MANIFEST).is_file()

    def begin(self, manifest: dict[str, Any], inputs: Iterable[str]) -> None:
        """Forget what is here, and note what the shards to come follow from."""
        self.clear()
        with (self.folder / INPUTS).open("w", encoding="utf-8", newline="") as stream:
            stream.writelines(inputs)
        self._write(MANIFEST, json.dumps(manifest, indent=2).encode())

    def clear(self) -> None:
        """Forget what is here."""
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for left in self.folder.iterdir():
            left.unlink()

    def manifest(self) -> dict[str, Any]:
        """What the shards here follow from."""
        return read_json(self.folder / MANIFEST)

    def compare_inputs(self, inputs: Iterable[str], what: str) -> None:
        """Refuse inputs that are not those which the run began with.

        Raises
        ------
        CorpusError
            It names the first file that differs.
        """
        with (self.folder / INPUTS).open(encoding="utf-8", newline="\n") as stream:
            for line in inputs:
                was = stream.readline()
                if was != line:
                    raise CorpusError(
                        f"the run that writes {what} was begun with other inputs",
                        found=line.strip(),
                        expected=was.strip() or "no further file",
                        do=AGAIN,
                    )
            was = stream.readline()
        if was:
            raise CorpusError(
                f"the run that writes {what} was begun with other inputs",
                found="no further file",
                expected=was.strip(),
                do=AGAIN,
            )

    def save(self, done: Done) -> None:
        """Keep a tagged shard."""
        head = asdict(done)
        head["body"] = sha256(done.body).hexdigest()
        self._write(_name(done.number), json.dumps(head).encode() + b"\n" + done.body)

    def load(self, number: int) -> Done | None:
        """A shard; None if it is not here, or was damaged when the machine stopped."""
        try:
            with (self.folder / _name(number)).open("rb") as stream:
                head = json.loads(stream.readline())
                body = stream.read()
            if head["body"] != sha256(body).hexdigest():
                return None
            failures = [Failure(**item) for item in head.pop("failures")]
            return Done(**{**head, "failures": failures, "body": body})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def take(self, number: int) -> Done | None:
        """A shard, which is removed; None if it is not here."""
        done = self.load(number)
        (self.folder / _name(number)).unlink(missing_ok=True)
        return done

    def numbers(self) -> list[int]:
        """The numbers of the shards that are here."""
        names = (path.name.removeprefix("shard-") for path in self.folder.glob("shard-*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def bodies(self, count: int) -> Iterator[bytes]:
        """Yield the texts of the first ``count`` shards, in order."""
        for number in range(count):
            done = self.load(number)
            if done is None:
                raise CorpusError(f"shard {number} is damaged", do="Run again with --resume.")
            yield done.body

    def _write(self, name: str, content: bytes) -> None:
        part = self.folder / f"{name}.part"
        part.write_bytes(content)
        os.replace(part, self.folder / name)


def _name(number: int) -> str:
    return f"shard-{number:08d}"
