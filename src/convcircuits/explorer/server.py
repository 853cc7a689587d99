"""The explorer's server process: where it listens, and how long it serves. No torch."""

import errno
import socket
import threading
from collections.abc import Callable

import uvicorn

from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.browser import open_address
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.routes import application
from convcircuits.explorer.security import Guard
from convcircuits.explorer.session import Session

PORT = 8642
"""The first port that is tried."""

_PORTS = 20
_TAKEN = (errno.EADDRINUSE, errno.EACCES)


def listening(host: str, port: int | None) -> socket.socket:
    """Open a socket at a port or, if none is given, at the first of some that is free.

    Raises:
        ConvCircuitsError: If that is not possible.
    """
    for number in range(PORT, PORT + _PORTS) if port is None else [port]:
        try:
            family = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0][0]
            found = socket.socket(family, socket.SOCK_STREAM)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                found.bind((host, number))
                found.listen(128)
            except BaseException:
                found.close()
                raise
            return found
        except OSError as error:
            problem = error
            if error.errno not in _TAKEN:
                break  # another port is no better
    raise ConvCircuitsError(
        f"--host {host} --port {number} cannot be listened at: {problem.strerror or problem}. Give another "
        f"{'--port' if problem.errno in _TAKEN else '--host'}."
    )


def serve(
    opening: Opening,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    read_only: bool = False,
    open_page: bool = True,
    notify: Callable[[str], None] = print,
    until: threading.Event | None = None,
) -> None:
    """Serve the explorer until Ctrl-C.

    Args:
        opening: What to open.
        host: The address to listen at.
        port: The port; if None, the first that is free from ``PORT`` on, and any if 0.
        read_only: Change nothing.
        open_page: Open the page in the web browser.
        notify: Called with each sentence for the user; first with the address.
        until: End when this is set; else also if the model cannot be loaded, with that error.

    Raises:
        ConvCircuitsError: If the port is taken, the project's folder is in use, or the model cannot be loaded.
    """
    found = listening(host, port)
    try:
        session = Session(opening, read_only=read_only)
    except BaseException:
        found.close()
        raise
    guard = Guard(application(session), port=found.getsockname()[1], host=host, read_only=read_only)
    config = uvicorn.Config(
        guard,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=2,
        limit_concurrency=256,
    )
    server = uvicorn.Server(config)

    def end() -> None:
        session.closing = server.should_exit = True

    def wait(event: threading.Event) -> None:
        event.wait()
        end()

    if until is None:
        session.jobs.on_failed = end  # a mistake in the command is reported where it was given
    else:
        threading.Thread(target=wait, args=[until], daemon=True).start()
    notify(guard.address)
    if open_page:
        threading.Timer(0.3, open_address, [guard.address, opening.project]).start()
    try:
        server.run(sockets=[found])
    finally:
        session.close()
        found.close()
    if until is None and session.jobs.problem:
        raise ConvCircuitsError(session.jobs.problem)
