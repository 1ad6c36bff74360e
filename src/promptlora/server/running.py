"""Run the server on a socket until Ctrl-C or SIGTERM, and finish what it has begun.

It knows uvicorn; nothing of endpoints.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn

from promptlora.signals import stopping


def serve(app: Any, listener: socket.socket, *, drain: float, ready: Callable[[], None]) -> None:
    """Serve an application; the first signal lets the answers that run end, the second does not.

    Args:
        app: An ASGI application.
        listener: A bound socket.
        drain: Seconds for the answers that run when a signal comes.
        ready: Called once the server answers.
    """

    class Server(uvicorn.Server):
        """Tells when it answers."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

    config = uvicorn.Config(
        app,
        log_config=None,  # uvicorn's own would close the log handlers of the whole process
        log_level="critical",  # requests are logged by the application, without their text
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(drain)),
        timeout_keep_alive=30,
    )
    with _interruptible():
        Server(config).run(sockets=[listener])


@contextmanager
def _interruptible() -> Iterator[None]:
    """The signal that ended uvicorn, which raises it again at its end, ends what is inside and nothing more."""
    with suppress(KeyboardInterrupt), stopping(at_once=True):
        yield
