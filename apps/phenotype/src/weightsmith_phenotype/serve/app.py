"""The routes: what the page and programs call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from weightsmith_phenotype import __version__
from weightsmith_phenotype.document import Document, Mention
from weightsmith_phenotype.errors import CorpusError, OntologyError
from weightsmith_phenotype.serve.export import MEDIA_TYPES, export
from weightsmith_phenotype.serve.guard import Guard, Limits, problem
from weightsmith_phenotype.serve.insight import Insight
from weightsmith_phenotype.serve.schemas import (
    ExportRequest,
    Finding,
    InsightRequest,
    InsightResponse,
    OntologyStamp,
    Problem,
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

PAGE = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
TEXT_FILES = (".txt", ".md")
RETRY_SECONDS = 3
FORM_PARTS = 8
"""Files, and fields, of a form that are read so that they can be named; one file is taken."""
REASONS = {
    400: "The request is not HTTP as it should be.",
    403: "The request comes from another origin.",
    404: "There is no such term or path.",
    408: "The request did not arrive in time.",
    413: "The text or the request is too large.",
    415: "The file is not plain text, or the request is of another type.",
    421: "The request names another host.",
    422: "A field is missing, unknown or not as it should be.",
    429: "Too many requests; `Retry-After` says when to try again.",
    500: "The server failed.",
    503: "The annotations are still being read; `Retry-After` says when to try again.",
}


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
    # Tagging is work of one processor: a second thread at it would make both wait.
    worker = CapacityLimiter(1)

    async def in_thread(work: Callable[..., T], *arguments: Any, **options: Any) -> T:
        return await to_thread.run_sync(partial(work, *arguments, **options), limiter=worker)

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
    _answer_problems(app)
    _serve_page(app)

    def check_size(text: str) -> str:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise HTTPException(422, "text: half of a surrogate pair is not a character. Send UTF-8.") from None
        if size > limits.max_bytes:
            raise HTTPException(
                413, f"text: found {size:,} bytes, expected at most {limits.max_bytes:,}. Send it in parts."
            )
        return text

    async def tag(text: str) -> list[Finding]:
        return [Finding.of(mention) for mention in await in_thread(tagger.tag, text)]

    @app.get("/api/status", responses=_problems(), operation_id="status")
    async def server_status() -> ServerStatus:
        """Say what the server works with."""
        state = "unavailable" if insight is None else insight.state
        return ServerStatus(version=__version__, ontology=stamp, insight=state, max_bytes=limits.max_bytes)

    @app.post("/api/tag", responses=_problems(400, 403, 408, 413, 415, 422), operation_id="tag")
    async def tag_text(request: TagRequest) -> TagResponse:
        """Find the terms that a text mentions."""
        return TagResponse(ontology=stamp, mentions=await tag(check_size(request.text)))

    @app.post(
        "/api/upload",
        responses=_problems(400, 403, 408, 413, 415, 422),
        operation_id="upload",
        openapi_extra={"requestBody": UPLOAD_BODY},
    )
    async def upload_file(request: Request) -> UploadResponse:
        """Find the terms that a text file mentions: `.txt` or `.md`, UTF-8."""
        name, content = await _uploaded(request, limits.max_bytes)
        text = check_size(_decoded(name, content))
        return UploadResponse(ontology=stamp, mentions=await tag(text), filename=name, text=text)

    @app.get("/api/terms", responses=_problems(422), operation_id="search_terms")
    async def search_terms(
        query: Annotated[str, Query(max_length=200, description="Words of a name or synonym, or an id.")],
        limit: Annotated[int, Query(ge=1, le=100, description="At most so many terms.")] = 20,
    ) -> TermSearch:
        """Search terms by name, synonym or id, as one types."""
        return await to_thread.run_sync(partial(terms.search, query, limit=limit))

    @app.get("/api/terms/{identifier}", responses=_problems(404, 422), operation_id="term")
    async def term(identifier: Annotated[str, Path(max_length=64)]) -> TermDetail:
        """Give a term's definition, synonyms, parents and children."""
        return terms.detail(identifier)

    @app.post(
        "/api/export",
        responses=_problems(400, 403, 408, 413, 415, 422) | EXPORTED,
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

    @app.post("/api/insight", responses=_problems(400, 403, 404, 408, 413, 415, 422, 503), operation_id="insight")
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
        return await to_thread.run_sync(insight.rank, present, excluded)

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


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {code: {"description": REASONS[code], "content": content} for code in sorted({*codes, 421, 429, 500})}


def _answer_problems(app: FastAPI) -> None:
    def answer(status: int, detail: str, headers: Any = None) -> JSONResponse:
        return JSONResponse(problem(status, detail), status, headers=headers, media_type="application/problem+json")

    def schema() -> dict[str, Any]:
        if not app.openapi_schema:
            FastAPI.openapi(app)["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return FastAPI.openapi(app)

    app.openapi = schema  # type: ignore[method-assign]

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        # Its message may quote the text. The guard logs where it happened.
        return answer(500, f"The server failed with {type(error).__name__}; its log says where.")

    @app.exception_handler(StarletteHTTPException)
    async def refused(_: Request, error: StarletteHTTPException) -> Response:
        return answer(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> Response:
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        sent = media or request.headers.get("content-length", "0") != "0"
        if request.method == "POST" and sent and media != "application/json" and not media.endswith("+json"):
            return answer(415, f"content-type: found {media[:80] or 'none'}, expected application/json.")
        # Pydantic's own answer would quote the input.
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        more = len(error.errors()) - 1
        return answer(422, f"{place}: {first['msg']}." + (f" And {more} more." if more else ""))

    @app.exception_handler(OntologyError)
    async def no_term(_: Request, error: OntologyError) -> Response:
        return answer(404, str(error))

    @app.exception_handler(CorpusError)
    async def no_document(_: Request, error: CorpusError) -> Response:
        return answer(422, str(error))


def _serve_page(app: FastAPI) -> None:
    """Serve the files of the page from memory, so that no path of a request reaches the disk."""
    stored = {entry.name: entry.read_bytes() for entry in (files(__package__) / "page").iterdir() if entry.is_file()}

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(stored["index.html"], media_type=PAGE["html"])

    @app.get("/page/{name}", include_in_schema=False)
    async def page(name: str) -> Response:
        ending = name.rpartition(".")[2]
        if name not in stored or ending not in PAGE:
            raise HTTPException(404, "There is no such file.")
        return Response(stored[name], media_type=PAGE[ending])


async def _uploaded(request: Request, most: int) -> tuple[str, bytes]:
    """Name and content of the one file of a form, held in memory: nothing is spooled to the disk."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(415, "Expected multipart/form-data with the field `file`.")
    parser = MultiPartParser(request.headers, request.stream(), max_files=FORM_PARTS, max_fields=FORM_PARTS)
    parser.spool_max_size = most * 2 + (1 << 16)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"The form cannot be read: {error.message}") from None
    parts = form.multi_items()
    file = form.get("file")
    if len(parts) != 1 or not isinstance(file, UploadFile):
        kinds = ("a file" if isinstance(value, UploadFile) else "a text" for _, value in parts)
        found = ", ".join(f"{kind} in the field {name[:40]!r}" for kind, (name, _) in zip(kinds, parts, strict=True))
        await form.close()
        raise HTTPException(
            422,
            f"form: found {found or 'no field'}, expected one .txt or .md file in the field 'file' and no other field.",
        )
    content = await file.read()
    await form.close()
    return PurePath((file.filename or "").replace("\\", "/")).name[:200], content


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
