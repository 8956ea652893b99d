"""The routes: what the page and programs call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar

from anyio import to_thread
from fastapi import FastAPI, HTTPException, Path, Query, Request, Response

from weightsmith.core.web import Guard, Limits, answer_problems, problems, serve_page, uploaded
from weightsmith_phenotype import __version__
from weightsmith_phenotype.document import Document, Mention
from weightsmith_phenotype.errors import CorpusError, OntologyError
from weightsmith_phenotype.serve.export import MEDIA_TYPES, export
from weightsmith_phenotype.serve.insight import Insight
from weightsmith_phenotype.serve.schemas import (
    ExportRequest,
    Finding,
    InsightRequest,
    InsightResponse,
    OntologyStamp,
    ServerStatus,
    TagRequest,
    TagResponse,
    TermDetail,
    TermSearch,
    UploadResponse,
)
from weightsmith_phenotype.serve.terms import TermIndex
from weightsmith_phenotype.tagger import PhenoTagger

__all__ = ["create_app"]

T = TypeVar("T")

TEXT_FILES = (".txt", ".md")
RETRY_SECONDS = 3


def create_app(tagger: PhenoTagger, *, limits: Limits | None = None, insight: Insight | None = None) -> Guard:
    """Make the ASGI application.

    Parameters
    ----------
    tagger : PhenoTagger
        Finds the mentions; its ontology is the one that is searched.
    limits : Limits, optional
        Of size and rate.
    insight : Insight, optional
        Ranks genes and diseases. It begins to read its annotations when the application starts. Without one, the
        route answers 404.

    Returns
    -------
    Guard
        The application with its checks around it; ``.app`` is the FastAPI application inside.
    """
    limits = limits or Limits()
    terms = TermIndex(tagger.ontology)
    stamp = OntologyStamp.of(tagger.ontology)
    # Tagging is work of one processor: a second thread at it would make both wait. What is in this queue when the time
    # for its answer is over is dropped; a text that is being read is read to its end, and the answer thrown away.
    worker = ThreadPoolExecutor(1, "tagging")

    async def in_thread(work: Callable[..., T], *arguments: Any, **options: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(worker, partial(work, *arguments, **options))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if insight is not None:
            insight.start()
        yield

    app = FastAPI(
        title="weightsmith phenotype",
        version=__version__,
        summary="Clinical text to terms of the Human Phenotype Ontology.",
        description="Answers on this machine only. No text is stored or logged. Offsets count code points.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
    )
    answer_problems(app, {OntologyError: 404, CorpusError: 422})
    serve_page(app, "weightsmith_phenotype.serve")

    def check_size(text: str) -> str:
        size = len(text.encode())
        if size > limits.max_bytes:
            raise HTTPException(
                413, f"text: found {size:,} bytes, expected at most {limits.max_bytes:,}. Send it in parts."
            )
        return text

    async def tag(text: str) -> list[Finding]:
        return [Finding.of(mention) for mention in await in_thread(tagger.tag, text)]

    @app.get("/api/status", responses=problems(), operation_id="status")
    async def server_status() -> ServerStatus:
        """Say what the server works with."""
        state = "unavailable" if insight is None else insight.state
        return ServerStatus(version=__version__, ontology=stamp, insight=state, max_bytes=limits.max_bytes)

    @app.post("/api/tag", responses=problems(400, 403, 408, 413, 415, 422), operation_id="tag")
    async def tag_text(request: TagRequest) -> TagResponse:
        """Find the terms that a text mentions."""
        return TagResponse(ontology=stamp, mentions=await tag(check_size(request.text)))

    @app.post(
        "/api/upload",
        responses=problems(400, 403, 408, 413, 415, 422),
        operation_id="upload",
        openapi_extra={"requestBody": UPLOAD_BODY},
    )
    async def upload_file(request: Request) -> UploadResponse:
        """Find the terms that a text file mentions: `.txt` or `.md`, UTF-8."""
        name, content = await uploaded(request, limits.max_bytes, expected="one .txt or .md file")
        text = check_size(_decoded(name, content))
        return UploadResponse(ontology=stamp, mentions=await tag(text), filename=name, text=text)

    @app.get("/api/terms", responses=problems(422), operation_id="search_terms")
    async def search_terms(
        query: Annotated[str, Query(max_length=200, description="Words of a name or synonym, or an id.")],
        limit: Annotated[int, Query(ge=1, le=100, description="At most so many terms.")] = 20,
    ) -> TermSearch:
        """Search terms by name, synonym or id, as one types."""
        return await to_thread.run_sync(partial(terms.search, query, limit=limit), abandon_on_cancel=True)

    @app.get("/api/terms/{identifier}", responses=problems(404, 422), operation_id="term")
    async def term(identifier: Annotated[str, Path(max_length=64)]) -> TermDetail:
        """Give a term's definition, synonyms, parents and children."""
        return terms.detail(identifier)

    @app.post(
        "/api/export",
        responses=problems(400, 403, 408, 413, 415, 422) | EXPORTED,
        response_class=Response,
        operation_id="export",
    )
    async def export_mentions(
        request: ExportRequest,
        format: Annotated[Literal["phenopacket", "csv", "json"], Query(description="What to make.")] = "phenopacket",
    ) -> Response:
        """Make a GA4GH phenopacket, a table or JSON from the mentions as the reader left them."""
        document = _document(request, tagger, check_size(request.text))
        name, content = await in_thread(export, document, tagger.ontology, format=format, subject_id=request.subject_id)
        disposition = f'attachment; filename="{name}"'
        return Response(content, media_type=MEDIA_TYPES[format], headers={"content-disposition": disposition})

    @app.post("/api/insight", responses=problems(400, 403, 404, 408, 413, 415, 422, 503), operation_id="insight")
    async def rank(request: InsightRequest) -> InsightResponse:
        """Rank the genes and diseases that the terms point to."""
        if insight is None:
            raise HTTPException(404, "Genes and diseases are known for the Human Phenotype Ontology only.")
        if insight.state == "loading":
            detail = f"The annotations of genes and diseases are being read. Try again in {RETRY_SECONDS} s."
            raise HTTPException(503, detail, headers={"retry-after": str(RETRY_SECONDS)})
        if insight.state == "failed":
            raise HTTPException(
                503, "The annotations of genes and diseases could not be read; the server's log says why."
            )
        present, excluded = (
            [tagger.ontology.resolve(identifier) or identifier for identifier in identifiers]
            for identifiers in (request.terms, request.excluded)
        )
        return await to_thread.run_sync(insight.rank, present, excluded, abandon_on_cancel=True)

    return Guard(app, limits=limits)


UPLOAD_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "A .txt or .md file, UTF-8."}
                },
            }
        }
    },
}
EXPORTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file.",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/csv": {"schema": {"type": "string"}},
        },
    }
}


def _decoded(name: str, content: bytes) -> str:
    if not name.lower().endswith(TEXT_FILES):
        ending = PurePath(name).suffix or "no ending"
        raise HTTPException(
            415, f"file: found {ending}, expected {' or '.join(TEXT_FILES)}. Save the note as plain text."
        )
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise HTTPException(415, "file: found UTF-16, expected UTF-8. Save the file as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HTTPException(
            415, f"file: byte {error.start} is not UTF-8. Save the file as plain text, encoded as UTF-8."
        ) from None


def _document(request: ExportRequest, tagger: PhenoTagger, text: str) -> Document:
    """Build the document that the corrected mentions make, their ids and offsets checked."""
    mentions = []
    for number, given in enumerate(request.mentions):
        live = tagger.ontology.resolve(given.concept_id)
        if live is None:
            suggested = ", ".join(tagger.ontology.suggestions(given.concept_id))
            raise HTTPException(
                422,
                f"mentions.{number}.concept_id: {given.concept_id!r} is not a term that a mention can have. "
                + (f"Consider {suggested}." if suggested else "Search the terms by name."),
            )
        fields = given.model_dump() | {"concept_id": live, "name": tagger.ontology[live].name}
        mentions.append(Mention(**fields))
    return Document(request.document_id, text, sorted(mentions))
