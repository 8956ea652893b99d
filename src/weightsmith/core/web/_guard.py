"""What every request passes before a route sees it: host, origin, rate and size; and the headers of every answer.

A page on the internet can make a browser send requests to 127.0.0.1. Three checks keep such a page out: the ``Host``
header must name this machine (a rebound DNS name does not), a request that is not a read must come from our own page,
and no answer allows another origin to read it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weightsmith.core.errors import HyperparameterError

__all__ = ["Guard", "Limits", "problem"]

LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
BODY_SECONDS = 30.0
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one client may ask for.

    Parameters
    ----------
    max_bytes : int, default: 1 MiB
        Largest text or file, in bytes. Requests may be larger by their JSON.
    rate : int, default: 600
        Requests to the REST interface per minute and address of a client; as many may come at once.
    seconds : int, default: 30
        Time for an answer, in seconds, from when the request has arrived.

    Raises
    ------
    HyperparameterError
        If a limit is below 1.
    """

    max_bytes: int = 1 << 20
    rate: int = 600
    seconds: int = 30

    def __post_init__(self) -> None:
        for name in ("max_bytes", "rate", "seconds"):
            if getattr(self, name) < 1:
                raise HyperparameterError(name, found=getattr(self, name), expected="at least 1")

    def body(self, path: str) -> int:
        """Largest body for a path: JSON escapes lengthen a text, and an export holds its mentions too."""
        return self.max_bytes * (8 if path == "/api/export" else 2) + (1 << 16)


def problem(status: int, detail: str) -> dict[str, object]:
    """The body of an answer that says why not, as the schema `Problem`."""
    return {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}


class Refused(Exception):
    """A request that does not reach a route."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.headers = status, headers


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, *, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.limits, self.clock = app, limits, clock
        self._tokens: dict[str, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request, hand it on, and finish the answer's headers."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets here; the server closes the connection
        started = finished = False
        time_limit: asyncio.Timeout | None = None

        async def answer(message: Message) -> None:
            nonlocal started, finished
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)
            finished = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            headers = Headers(scope=scope)
            self._check_origin(scope["method"], headers)
            if scope["path"].startswith("/api/"):
                self._check_rate(scope["client"][0] if scope.get("client") else "")
            body = await self._read(headers, receive, self.limits.body(scope["path"]))
            if body is not None:
                if "json" in headers.get("content-type", "json"):
                    _check_characters(body)
                async with asyncio.timeout(self.limits.seconds) as time_limit:
                    await self.app(scope, _replay(body, receive), answer)
        except Refused as refused:
            await _refuse(answer, refused.status, str(refused), **refused.headers)
        except Exception as error:
            if isinstance(error, TimeoutError) and time_limit is not None and time_limit.expired() and not started:
                await _refuse(
                    answer,
                    503,
                    f"There was no answer within {self.limits.seconds} s. Send less at once, or start the server with "
                    "more time for an answer.",
                    **{"retry-after": str(self.limits.seconds)},
                )
                return
            # The message of an exception may quote the text: only its type and place are logged.
            place = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("%s at %s:%s", type(error).__name__, place.filename, place.lineno)
            if not started:
                await _refuse(answer, 500, f"The server failed with {type(error).__name__}; its log says where.")
            elif not finished:
                raise ConnectionError("the answer was cut short") from None

    def _check_origin(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if host.rpartition(":")[0].lower() not in LOCAL_NAMES and host.lower() not in LOCAL_NAMES:
            raise Refused(421, "This server answers only under 127.0.0.1, localhost or [::1]. Open it by that name.")
        if method in ("GET", "HEAD"):
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if (origin is not None and origin.lower() != f"http://{host.lower()}") or site not in ("none", "same-origin"):
            raise Refused(
                403, "The request comes from a page of another origin; only this server's own page may send it."
            )

    def _check_rate(self, client: str) -> None:
        now, rate = self.clock(), self.limits.rate
        if len(self._tokens) > 1000:  # buckets that are full again say nothing
            self._tokens = {who: held for who, held in self._tokens.items() if now - held[1] < 60}
        tokens, last = self._tokens.get(client, (float(rate), now))
        tokens = min(rate, tokens + (now - last) * rate / 60)
        if tokens < 1:
            self._tokens[client] = tokens, now
            wait = math.ceil((1 - tokens) * 60 / rate)
            raise Refused(
                429, f"More than {rate} requests per minute. Try again in {wait} s.", **{"retry-after": str(wait)}
            )
        self._tokens[client] = tokens - 1, now

    async def _read(self, headers: Headers, receive: Receive, limit: int) -> bytes | None:
        """Read a body as long as it stays within the limit; None if the client left."""
        declared = headers.get("content-length", "0")
        if not declared.isdecimal():
            raise Refused(400, "Content-Length is not a number.")
        refused = Refused(
            413,
            f"The request is larger than {limit:,} bytes. Send less, or start the server with a larger --max-bytes.",
        )
        body, seen = bytearray(), 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                # Most clients send all before they read an answer. So a body that is too large is still received, up to
                # a point, but not kept; without this the client would see a broken connection instead of the reason.
                while int(declared) <= limit or (seen < limit * 8 and "expect" not in headers):
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunk = message.get("body", b"")
                    seen += len(chunk)
                    if seen <= limit:
                        body += chunk
                    elif seen > limit * 8:
                        break
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise Refused(408, f"The request did not arrive within {BODY_SECONDS:.0f} s.") from None
        if max(seen, int(declared)) > limit:
            raise refused
        return bytes(body)


def _check_characters(body: bytes) -> None:
    """Refuse JSON with half of a surrogate pair: Python reads it, and no answer can hold it."""
    if not any(mark in body for mark in (b"\\u", b"\xed", b"\0")):  # an escape, its bytes, or UTF-16
        return
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        detail = "The request holds half of a surrogate pair, which is not a character. Send UTF-8."
        raise Refused(422, detail) from None
    except (ValueError, RecursionError):
        return  # the route says why it cannot be read


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _refuse(send: Send, status: int, detail: str, **headers: str) -> None:
    body = json.dumps(problem(status, detail)).encode()
    fields = {"content-type": "application/problem+json", "content-length": str(len(body)), **headers}
    if status in (408, 413):
        fields["connection"] = "close"  # the rest of the body is not read
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
