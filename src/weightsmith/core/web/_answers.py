"""Answers that say why not, the files of a page, and uploads held in memory."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from weightsmith.core.web._guard import problem

__all__ = ["REASONS", "Problem", "answer_problems", "problems", "serve_page", "uploaded"]

PAGE = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
FORM_PARTS = 8
"""Files, and fields, of a form that are read so that they can be named; one file is taken."""
REASONS = {
    400: "The request is not HTTP as it should be.",
    403: "The request comes from another origin.",
    404: "There is no such thing or path.",
    408: "The request did not arrive in time.",
    413: "The text, the file or the request is too large.",
    415: "The file is of a kind that is not read, or the request is of another type.",
    421: "The request names another host.",
    422: "A field is missing, unknown or not as it should be.",
    429: "Too many requests; `Retry-After` says when to try again.",
    500: "The server failed.",
    503: "The answer took too long, or what it needs is still being read; `Retry-After` says when to try again.",
}


class Problem(BaseModel):
    """Why a request was not answered (RFC 9457)."""

    title: str = Field(description="The kind of problem, in a few words.", examples=["Too large"])
    status: int = Field(description="The HTTP status code.", examples=[413])
    detail: str = Field(description="What was found, what was expected, and what to do.")


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route in OpenAPI: the given status codes, and those that every route may answer."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {code: {"description": REASONS[code], "content": content} for code in sorted({*codes, 421, 429, 500, 503})}


def answer_problems(app: FastAPI, statuses: Mapping[type[Exception], int]) -> None:
    """Answer exceptions as problems, without a word of what the user sent.

    Parameters
    ----------
    app : FastAPI
        The application.
    statuses : mapping of exception to int
        Exceptions of a product whose message is for the user, and the status that each gets. Any other answers 500.
    """

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

    for kind, status in statuses.items():

        async def said(_: Request, error: Exception, status: int = status) -> Response:
            return answer(status, str(error))

        app.add_exception_handler(kind, said)


def serve_page(app: FastAPI, package: str) -> None:
    """Serve the folder ``page`` of a package, and the files that all pages share.

    They are served from memory, so that no path of a request reaches the disk.
    """
    folders = (files("weightsmith.core.web") / "page", files(package) / "page")
    stored = {entry.name: entry.read_bytes() for folder in folders for entry in folder.iterdir() if entry.is_file()}

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(stored["index.html"], media_type=PAGE["html"])

    @app.get("/page/{name}", include_in_schema=False)
    async def page(name: str) -> Response:
        ending = name.rpartition(".")[2]
        if name not in stored or ending not in PAGE:
            raise HTTPException(404, "There is no such file.")
        return Response(stored[name], media_type=PAGE[ending])


async def uploaded(request: Request, most: int, *, expected: str) -> tuple[str, bytes]:
    """Name and content of the one file of a form, held in memory: nothing is spooled to the disk.

    Parameters
    ----------
    request : Request
        With a body that the guard has read.
    most : int
        Largest file, in bytes.
    expected : str
        What the file should be, for messages: ``"one .txt or .md file"``.
    """
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
            422, f"form: found {found or 'no field'}, expected {expected} in the field 'file' and no other field."
        )
    content = await file.read()
    await form.close()
    return PurePath((file.filename or "").replace("\\", "/")).name[:200], content
