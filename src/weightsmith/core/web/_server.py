"""The server process: one socket on 127.0.0.1."""

from __future__ import annotations

import errno
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from weightsmith.core.errors import HyperparameterError
from weightsmith.core.web._guard import Guard

__all__ = ["HOST", "LocalServer", "listen", "run", "serving"]

HOST = "127.0.0.1"


class LocalServer(uvicorn.Server):
    """A server that calls back when it accepts connections, and logs no request: a query holds words of a note.

    Parameters
    ----------
    app : Guard
        What answers.
    ready : callable
        Is called once the server accepts connections.
    """

    def __init__(self, app: Guard, ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=64,
                timeout_graceful_shutdown=3,
                h11_max_incomplete_event_size=1 << 15,
            )
        )
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        self._ready()


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1, and on no other address.

    Parameters
    ----------
    port : int
        0 takes any free one.

    Raises
    ------
    HyperparameterError
        If another program has the port.
    """
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        found = "a port in use" if error.errno == errno.EADDRINUSE else "a port that needs privileges"
        raise HyperparameterError(f"--port {port}", found=found, do="Choose another, or 0 for any free one.") from None


def run(app: Guard, listener: socket.socket, *, open_page: bool = True, say: Callable[[str], None] = print) -> None:
    """Serve until interrupted.

    Parameters
    ----------
    app : Guard
        From `create_app`.
    listener : socket
        From `listen`.
    open_page : bool, default: True
        Open the page in the browser.
    say : callable
        Is told the address.
    """
    address = f"http://{HOST}:{listener.getsockname()[1]}/"

    def ready() -> None:
        say(f"{address}  (Ctrl+C ends it)")
        if open_page:
            webbrowser.open(address)

    LocalServer(app, ready).run(sockets=[listener])


@contextmanager
def serving(app: Guard, *, seconds: float = 20.0) -> Iterator[str]:
    """Serve on a free port in a thread of this process, and yield the address.

    Parameters
    ----------
    app : Guard
        From `create_app`.
    seconds : float, default: 20
        How long to wait for it to start, and to end.

    Raises
    ------
    TimeoutError
        If it does not.
    """
    started = threading.Event()
    server = LocalServer(app, started.set)
    with listen(0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            if not started.wait(seconds):
                raise TimeoutError(f"the server did not start within {seconds:g} s")
            yield f"http://{HOST}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(seconds)
        if thread.is_alive():
            raise TimeoutError(f"the server did not end within {seconds:g} s")
