"""Tagging of corpora: streaming, in several processes, and resumed where a run was killed.

Documents are cut into shards of a fixed number, whatever the number of processes. Each shard that is done is one file
beside the output, written whole or not at all. A run that is killed loses the shards that were being worked on; the
next one reads the documents again, compares them with those of each shard that is done, and tags the rest.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import file_digest, sha256
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from weightsmith.core.errors import HyperparameterError, WorkerError
from weightsmith.core.io import (
    TemporaryFolder,
    check_written,
    kept_folder,
    put_in_place,
    read_json,
    scratch_folder,
    write_file,
)
from weightsmith.core.jobs import Backend, stream_jobs
from weightsmith.core.progress import track
from weightsmith_phenotype.corpus import (
    EARLIER,
    RECORD,
    STDIN,
    Failure,
    Input,
    find_inputs,
    read_inputs,
    shown,
)
from weightsmith_phenotype.errors import CorpusError, TaggerError
from weightsmith_phenotype.formats import FORMATS, OffsetUnit
from weightsmith_phenotype.formats._registry import check_target, in_files, put_file
from weightsmith_phenotype.shards import AGAIN, Done, Shard, ShardFolder
from weightsmith_phenotype.workers import OutputSettings, PickledTagger, Tagger, stamp, tag_shard

__all__ = ["BatchResult", "Tagger", "stamp", "tag_corpus"]

SHARD_DOCUMENTS = 64
SHARD_CHARACTERS = 200_000
"""A shard ends at whichever comes first: about a second of work, which is what a kill costs each process."""
RECORDED = ("documents", "mentions", "left_out", "skipped", "notices")
"""Attributes of the result that stand in the record."""


@dataclass(slots=True)
class BatchResult:
    """What became of a corpus.

    Attributes
    ----------
    documents, mentions : int
        How many documents were tagged, and how many mentions were found in them.
    left_out : int
        Mentions that are not asserted and that the format cannot mark.
    resumed : int
        Documents that an earlier run had tagged.
    failures : list of Failure
        Files and documents that could not be tagged, in the order of the corpus.
    skipped : dict of str to int
        Files in folders that were not read, by kind: their suffix, or why. See `find_inputs`.
    notices : list of str
        What was kept in another way than a file has it.
    seconds : float
        Wall time of this run.
    """

    documents: int = 0
    mentions: int = 0
    left_out: int = 0
    resumed: int = 0
    failures: list[Failure] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    seconds: float = 0.0


def tag_corpus(
    notes: Sequence[str | os.PathLike[str]],
    tagger: Tagger,
    out: str | os.PathLike[str] | BinaryIO,
    *,
    format: str = "json",
    input_format: str | None = None,
    jobs: int = 1,
    backend: Backend = "processes",
    resume: bool = False,
    overwrite: bool = False,
    include_negated: bool = False,
    offset_unit: OffsetUnit = "codepoints",
    batch_size: int = SHARD_DOCUMENTS,
    created: datetime | None = None,
    stdin: BinaryIO | None = None,
    reads: Sequence[str | os.PathLike[str]] = (),
) -> BatchResult:
    """Tag files, folders and standard input, and write what is found.

    Parameters
    ----------
    notes : sequence of path
        Files and folders; ``"-"`` is standard input. See `find_inputs`.
    tagger : Tagger
        A `PhenoTagger`, or what has its ``tag`` and ``ontology``.
    out : path or binary stream
        A file, or a folder for brat and for phenopackets without a suffix. It appears whole or not at all; what is done
        is kept beside it until then. ``OUT.run.json`` says what it was made with and what failed.
    format : str, default: "json"
        A name of `FORMATS`.
    input_format : str, optional
        Format of the notes; by default by their names.
    jobs : int, default: 1
        Processes. The output does not depend on it.
    backend : {"processes", "ray"}, default: "processes"
        Where they run. With Ray on several machines, the folder of ``out`` must be one that all of them see.
    resume : bool, default: False
        Go on where a run with the same inputs, tagger and format was killed, if one was.
    overwrite : bool, default: False
        Replace ``out``, and start again where a run was killed.
    include_negated : bool, default: False
        Write mentions that are not asserted in formats that cannot mark them.
    offset_unit : {"codepoints", "utf16", "bytes"}, default: "codepoints"
        What offsets count in JSON.
    batch_size : int, default: 64
        Documents in a shard. A resumed run keeps the one that it began with.
    created : datetime, optional
        Time stamp of phenopackets; by default the start of the run.
    stdin : binary stream, optional
        What ``"-"`` reads.
    reads : sequence of path
        Other files and folders that the run follows from, such as the ontology: they are not written over.

    Returns
    -------
    BatchResult
        One bad file does not stop the rest: see ``failures``.

    Raises
    ------
    CorpusError
        If nothing is found to tag, ``out`` exists, an option has no effect with the format, or a run is resumed with
        other inputs, another tagger or format.
    weightsmith.core.errors.HyperparameterError
        If ``out`` or its record is one of ``reads``.

    Examples
    --------
    >>> import io
    >>> from weightsmith_phenotype import Ontology, PhenoTagger, Term
    >>> terms = [Term("X:1", "finding"), Term("X:2", "Ptosis", parents=["X:1"])]
    >>> tagger = PhenoTagger(Ontology(terms, root="X:1"))
    >>> out = io.BytesIO()
    >>> result = tag_corpus(["-"], tagger, out, format="tsv", stdin=io.BytesIO(b"She has ptosis."))
    >>> out.getvalue().decode().split()[-4:], result.mentions
    (['8', '14', 'ptosis', 'X:2'], 1)
    """
    start = time.monotonic()
    if batch_size < 1:
        raise HyperparameterError("batch_size", found=batch_size, expected=">= 1")
    chosen = FORMATS.get(format)
    if chosen is None or not chosen.writable:
        names = ", ".join(name for name, item in FORMATS.items() if item.writable)
        raise CorpusError("format of the output", found=repr(format), expected=f"one of {names}")
    if offset_unit != "codepoints" and format != "json":
        raise CorpusError(
            "offset_unit", found=f"{offset_unit!r} with the format {format}", expected="code points", do="Write json."
        )
    if include_negated and chosen.carries_flags:
        raise CorpusError(
            "include_negated",
            found=f"the format {format}, which has every mention that it has a place for",
            expected="pubtator or tsv",
        )
    if STDIN in map(str, notes) and stdin is None and sys.stdin is None:
        raise CorpusError("standard input is closed", do="Pipe a note into it, or name a file.")
    place = Path(os.path.abspath(out)) if isinstance(out, (str, os.PathLike)) else None
    if place is None and (resume or chosen.render is None):
        what = "a run whose output is a stream cannot be resumed" if resume else f"{format} is written to a folder"
        raise CorpusError(what, do="Name an output with --out.")
    settings = OutputSettings(
        format=format,
        as_files=place is not None and in_files(chosen, place),
        include_negated=include_negated,
        offset_unit=offset_unit,
        created=(created or datetime.now(UTC)).replace(microsecond=0),
    )
    reader = _Reader(notes, input_format, batch_size, stdin, reads)
    run = _Run(reader, tagger, settings, jobs, backend)
    if place is None:
        run.to_stream(cast(BinaryIO, out))
    else:
        run.to_place(place, resume=resume, overwrite=overwrite)
    run.result.seconds = time.monotonic() - start
    return run.result


class _Reader:
    """Cuts all that is read into shards."""

    def __init__(
        self,
        notes: Sequence[str | os.PathLike[str]],
        format: str | None,
        batch_size: int,
        stdin: BinaryIO | None,
        reads: Sequence[str | os.PathLike[str]],
    ) -> None:
        self.notes, self.format, self.batch_size, self.stdin = notes, format, batch_size, stdin
        self.reads = reads
        self.without: frozenset[str] = frozenset()
        self.notices: list[str] = []
        self.skipped: Counter[str] = Counter()
        self.count = 0
        self.expected: int | None = None

    def inputs(
        self, failed: Callable[[Failure], None], skipped: Callable[[str, str], None] | None = None
    ) -> Iterator[Input]:
        return find_inputs(self.notes, self.format, failed=failed, skipped=skipped, without=self.without)

    def skip(self, path: str, kind: str) -> None:
        """Count what is not read, and name what looks like notes."""
        self.skipped[kind] += 1
        if kind == EARLIER:
            self.notices.append(f"{shown(path)} is not read: {shown(path)}{RECORD} says that an earlier run wrote it")

    def leave_out(self, place: Path, record: Path) -> None:
        """Do not read what is written.

        Raises
        ------
        CorpusError
            If a note, or something else that is read, would be replaced.
        """
        notes = [str(note) for note in self.notes if str(note) != STDIN]
        if place.exists() and not record.is_file():  # no earlier output: in a folder of notes it is one of them
            notes += [item.path for item in self.inputs(lambda failure: None) if item.path is not None]
        for paths, found in ((notes, "notes that are read"), (self.reads, "what is read beside the notes")):
            for read in (Path(os.path.realpath(path)) for path in paths):
                if any(read.is_relative_to(os.path.realpath(written)) for written in (place, record)):
                    raise CorpusError(f"{shown(place)} cannot be written", found=found, do="Name another output.")
        if not place.exists() or place.is_file():
            check_written({"out": place, "record": record}, inputs=self.reads)
        self.without = frozenset(map(str, (place, record)))

    def listing(self) -> Iterator[str]:
        """A line per input: its name and size. Counts the documents, if the files say it: a plain text is one."""
        count: int | None = 0
        for item in self.inputs(lambda failure: None):
            single = item.path is not None and item.format in ("text", "brat")
            count = count + 1 if single and count is not None else None
            yield f"{json.dumps(item.name)} {item.size} bytes\n"
        self.expected = count

    def shards(self) -> Iterator[Shard]:
        """Yield the shards of all inputs, in order. What is not found makes up the last."""
        shard = Shard(0)
        missing: list[Failure] = []
        for item in read_inputs(self.inputs(missing.append, self.skip), stdin=self.stdin, noticed=self.notices.append):
            if isinstance(item, Failure):
                shard.failures.append(item)
            else:
                file, document = item
                shard.items.append((file, document.id, document.text, tuple(document.passages)))
                shard.characters += len(document.text)
            full = len(shard.items) + len(shard.failures) >= self.batch_size
            if full or shard.characters >= SHARD_CHARACTERS:
                self.count = shard.number + 1
                yield shard
                shard = Shard(self.count)
        shard.failures.extend(missing)
        if shard.items or shard.failures:
            self.count = shard.number + 1
            yield shard


class _Run:
    """One run over a corpus."""

    def __init__(self, reader: _Reader, tagger: Tagger, settings: OutputSettings, jobs: int, backend: Backend) -> None:
        self.reader, self.tagger, self.settings, self.jobs, self.backend = reader, tagger, settings, jobs, backend
        self.result = BatchResult()
        self.kept: dict[int, Done] = {}
        """Shards of an earlier run; each loses its documents' text when they were compared."""
        self.done: dict[int, Done] = {}
        self.fault: BaseException | None = None

    def to_stream(self, stream: BinaryIO) -> None:
        """Write to a stream in the order of the documents; shards that finish early wait in a folder."""
        chosen = FORMATS[self.settings.format]
        due = 0

        def put(done: Done | None) -> None:
            nonlocal due
            if done is not None and done.number != due:
                with _writing(waiting.folder, "Make room there, or name an output with --out."):
                    waiting.save(done)
                return
            while done is not None:
                stream.write(done.body)
                due += 1
                done = waiting.take(due)
            stream.flush()

        with TemporaryFolder() as folder:
            waiting = ShardFolder(Path(folder))
            stream.write(chosen.head.encode())
            self.work(Path(folder), put=put)
            stream.write(chosen.tail.encode())
            stream.flush()

    def to_place(self, place: Path, *, resume: bool, overwrite: bool) -> None:
        """Write to a file or folder, by way of shards that are kept until all are done."""
        record = place.with_name(place.name + RECORD)
        self.reader.leave_out(place, record)
        check_target(place, as_folder=self.settings.as_files, overwrite=True)
        with kept_folder(place) as folder:
            shards = ShardFolder(folder)
            manifest = self.manifest(overwrite)
            if shards.begun and resume and not overwrite:
                old = shards.manifest()
                self.take_over(old, manifest, place)
                may = old.get("overwrite") or record.is_file()
                check_target(place, as_folder=self.settings.as_files, overwrite=may)
                shards.compare_inputs(self.reader.listing(), shown(place))
                self.kept = {done.number: done for done in map(shards.load, shards.numbers()) if done is not None}
                for done in self.kept.values():
                    done.body = b""
                manifest = old
            elif shards.begun and not overwrite:
                raise CorpusError(
                    f"a run that writes {shown(place)} was stopped",
                    do="Go on with --resume, or start again with --overwrite.",
                )
            elif resume and not overwrite and place.exists() and record.is_file():
                self.already(read_json(record), manifest, place)
                return
            else:
                check_target(place, as_folder=self.settings.as_files, overwrite=overwrite)
                listing = self.reader.listing()
                first = next(listing, "")  # raises if there is nothing to read, before anything is written
                with _writing(place):
                    shards.begin(manifest, chain([first], listing))

            try:
                with _writing(place):
                    self.work(folder, keep=True)
            except BaseException:
                if not shards.numbers():
                    shards.clear()
                raise
            with scratch_folder(place) as scratch:
                made = scratch / place.name
                with _writing(place):
                    self.assemble(shards, made)
                # The record comes first: a run that is killed between the two is resumed and puts both in place again.
                write_file(record, json.dumps(self.record(manifest, made), indent=2) + "\n")
                put_in_place(made, place)

    def work(self, folder: Path, *, keep: bool = False, put: Callable[[Done], None] = lambda done: None) -> None:
        """Tag all shards that were not kept, and hand each over in the order in which they finish.

        With ``keep`` each is in the folder then, without its text.
        """
        pickled = folder / "tagger.pickle"
        holder: Tagger | PickledTagger = self.tagger
        if self.jobs != 1 or self.backend != "processes":
            holder = PickledTagger.write(self.tagger, pickled)
        function = partial(tag_shard, holder, self.settings, folder if keep else None)
        try:
            results = stream_jobs(function, self.to_do(), workers=self.jobs, backend=self.backend)
            for _ in track(self.ticks(results, put), "tagging notes", self.reader.expected):
                pass
        except WorkerError as error:
            raise TaggerError(
                "a worker process was killed, by the system if memory ran out",
                found=f"{len(self.done)} shards done",
                do="Use fewer --jobs; a run with --out goes on with --resume.",
            ) from error
        finally:
            pickled.unlink(missing_ok=True)
        if self.fault is not None:
            raise self.fault
        if self.kept:
            raise CorpusError(
                "there are fewer documents than when the run that is resumed began",
                found=f"{self.reader.count} shards",
                expected=f"at least {max(self.kept) + 1}",
                do=AGAIN,
            )
        self.summarize()

    def to_do(self) -> Iterator[Shard]:
        """Yield the shards that were not kept. A fault is raised later: joblib takes shards in a thread of its own."""
        try:
            for shard in self.reader.shards():
                kept = self.kept.pop(shard.number, None)
                if kept is None:
                    yield shard
                elif kept.digest == shard.digest():
                    self.done[shard.number] = kept
                    self.result.resumed += kept.documents
                else:
                    raise CorpusError(
                        "the documents are not those with which the run that is resumed began",
                        found=f"others between {shard.items[0][1]!r} and {shard.items[-1][1]!r}"
                        if shard.items
                        else None,
                        do=AGAIN,
                    )
        except Exception as error:
            self.fault = error

    def ticks(self, results: Iterable[Done], put: Callable[[Done], None]) -> Iterator[None]:
        """Hand over what comes back; yield once per document, so that progress counts documents."""
        ticked = 0
        for done in results:
            put(done)
            done.body = b""
            self.done[done.number] = done
            yield from [None] * (done.documents + self.result.resumed - ticked)
            ticked = self.result.resumed

    def summarize(self) -> None:
        """Add up what all shards say, in their order."""
        result = self.result
        result.notices.extend(self.reader.notices)
        result.skipped = dict(self.reader.skipped)
        for number in range(self.reader.count):
            done = self.done[number]
            result.documents += done.documents
            result.mentions += done.mentions
            result.left_out += done.left_out
            result.failures.extend(done.failures)
            result.notices.extend(done.notices)

    def assemble(self, shards: ShardFolder, made: Path) -> None:
        """Make the output of the shards."""
        chosen = FORMATS[self.settings.format]
        bodies = shards.bodies(self.reader.count)
        if self.settings.as_files:
            made.mkdir()
            for body in bodies:
                for line in body.splitlines():
                    name, text = json.loads(line)
                    put_file(made / name, text)
            return
        with made.open("wb") as stream:
            stream.write(chosen.head.encode())
            stream.writelines(bodies)
            stream.write(chosen.tail.encode())

    def manifest(self, overwrite: bool) -> dict[str, Any]:
        """What the output follows from, and so must be the same for a run to be resumed."""
        return {
            "tagger": stamp(self.tagger),
            "format": self.settings.format,
            "as_files": self.settings.as_files,
            "input_format": self.reader.format,
            "include_negated": self.settings.include_negated,
            "offset_unit": self.settings.offset_unit,
            "created": self.settings.created.isoformat(),
            "batch_size": self.reader.batch_size,
            "overwrite": overwrite,
        }

    def take_over(self, old: dict[str, Any], new: dict[str, Any], place: Path) -> None:
        """Go on as the run began; refuse another tagger, format or way to write.

        Raises
        ------
        CorpusError
            It names what differs.
        """
        for key, value in new.items():
            if key not in ("created", "batch_size", "overwrite") and old.get(key) != value:
                raise CorpusError(
                    f"the run that writes {shown(place)} was begun with another {key}",
                    found=value,
                    expected=old.get(key),
                    do="Resume with the same, or start again with --overwrite.",
                )
        with _sound(place):
            self.reader.batch_size = int(old["batch_size"])
            self.settings = replace(self.settings, created=datetime.fromisoformat(old["created"]))

    def record(self, manifest: dict[str, Any], made: Path) -> dict[str, Any]:
        """What the output was made with, what became of the documents, and which output it is."""
        counts = {name: getattr(self.result, name) for name in RECORDED}
        failures = [asdict(failure) for failure in self.result.failures]
        kept = {key: value for key, value in manifest.items() if key != "overwrite"}
        digests = (self.done[number].digest for number in range(self.reader.count))
        return {**kept, **counts, "failures": failures, "digest": _digest(digests), "output": _content(made)}

    def already(self, record: dict[str, Any], manifest: dict[str, Any], place: Path) -> None:
        """Take over the result of a run that was complete, if it was of the same documents and its output is there."""
        do = "Choose another output, or pass --overwrite."
        self.take_over(record | {"overwrite": False}, manifest, place)
        with _sound(place):
            was, failures = record["digest"], [Failure(**failure) for failure in record["failures"]]
            for name in RECORDED:
                found, empty = record.get(name, getattr(self.result, name)), getattr(self.result, name)
                if type(found) is not type(empty):
                    raise TypeError(f"{name} is {found!r}")
                setattr(self.result, name, found)
        if record.get("output") not in (None, _content(place)):
            raise CorpusError(f"{shown(place)} is not what its run wrote", do=do)
        if _digest(shard.digest() for shard in self.reader.shards()) != was:
            raise CorpusError(f"{shown(place)} is complete, of other documents", do=do)
        self.result.resumed = self.result.documents
        self.result.failures = failures


@contextmanager
def _sound(place: Path) -> Iterator[None]:
    """Say that it is the record of a run that is damaged."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        message = f"the record of the run that writes {shown(place)} is damaged"
        raise CorpusError(
            message, found=f"{type(error).__name__}: {error}", do="Start again with --overwrite."
        ) from None


@contextmanager
def _writing(place: Path, do: str = "Make room, then go on with --resume.") -> Iterator[None]:
    """Say what could not be written: the system's message of a full disk does not."""
    try:
        yield
    except OSError as error:
        raise CorpusError(f"cannot write {shown(place)}", found=error, do=do) from error


def _content(place: Path) -> str:
    """A digest of an output: a file, or all files of a folder with their names."""
    total = sha256()
    for file in sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]:
        with file.open("rb") as stream:
            total.update(
                f"{file.relative_to(place).as_posix()!r} {file_digest(stream, 'sha256').hexdigest()}\n".encode()
            )
    return total.hexdigest()


def _digest(digests: Iterable[str]) -> str:
    return sha256("".join(digests).encode()).hexdigest()
