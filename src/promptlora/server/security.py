"""Who asks, and how much: API keys, the names by which this machine may be called, the size of a body.

It is one ASGI middleware around all endpoints; it knows nothing of what they do.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from promptlora.errors import ConfigError
from promptlora.reading import read_text
from promptlora.server.errors import ApiError, too_many

NOBODY = ""  # the owner of everything on a server without keys
_SHORTEST_KEY = 8
_OPEN = ("/health",)  # needs no key, and is answered however much there is to do
_LOCAL = ("127.0.0.1", "localhost", "[::1]")


def owner_of(key: str) -> str:
    """The name under which a key owns adapters and jobs; the key cannot be computed from it."""
    return hashlib.sha256(b"promptlora owner\0" + key.encode()).hexdigest()[:32]


def check_keys(keys: Sequence[str], where: str) -> tuple[str, ...]:
    """The keys, each once.

    Raises:
        ConfigError: A key that is short or that no header can hold.
    """
    for key in keys:
        if len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"{where}: a key of {len(key)} characters. Expected at least {_SHORTEST_KEY} ASCII characters without spaces. "
                "Fix: make one with `openssl rand -hex 24`."
            )
    return tuple(dict.fromkeys(keys))


def read_keys(file: Path) -> tuple[str, ...]:
    """The keys of a file, one on each line; empty lines and lines that start with # are skipped.

    Raises:
        ConfigError: A file that cannot be read or that has no key.
    """
    lines = [line.strip() for line in read_text(file, ConfigError, longest=1 << 20).splitlines()]
    keys = check_keys([line for line in lines if line and not line.startswith("#")], str(file))
    if not keys:
        raise ConfigError(f"{file}: no key. Expected one on each line.")
    return keys


class Gate:
    """ASGI middleware: refuses strangers and bodies that are too large, and notes the owner in ``scope["state"]``.

    Without keys, a server on a loopback address answers only under a loopback name: a page on the web whose name was
    pointed at 127.0.0.1 could otherwise read answers.

    Args:
        app: What is guarded.
        keys: The API keys; none lets everyone in.
        most_bytes: Largest body.
        most_requests: Most requests that are open at one time.
        local: Whether the server is on a loopback address.
    """

    def __init__(self, app: Any, *, keys: Sequence[str], most_bytes: int, most_requests: int, local: bool) -> None:
        self.app, self.most_bytes, self.most_requests = app, most_bytes, most_requests
        self.open = 0
        self.owners = [(hashlib.sha256(key.encode()).digest(), owner_of(key)) for key in keys]
        self.only_local = local and not keys

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            scope.setdefault("state", {})["owner"] = self._owner(scope["path"], headers)
            receive = self._limited(headers, receive)
            if self.open >= self.most_requests and scope["path"] not in _OPEN:
                raise too_many("requests are open", 5)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        self.open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.open -= 1

    def _owner(self, path: str, headers: dict[str, str]) -> str:
        if self.only_local and _host_name(headers.get("host", "localhost")) not in _LOCAL:
            raise ApiError(403, "Host: not a name of this machine. Expected localhost or 127.0.0.1.", code="wrong_host")
        if not self.owners or path in _OPEN:
            return NOBODY
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
        found = None
        for expected, owner in self.owners:  # all of them: the time says nothing of which one fits
            if hmac.compare_digest(given, expected):
                found = owner
        if found is None or scheme.lower() != "bearer":
            raise ApiError(
                401,
                "Incorrect API key provided. Expected the header `Authorization: Bearer KEY` with a key of this server.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found

    def _limited(self, headers: dict[str, str], receive: Any) -> Any:
        """``receive`` that ends a body once it is too large, whatever its header says."""
        message = f"The body is larger than {self.most_bytes} bytes. Expected a smaller one."
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > self.most_bytes:
            raise ApiError(413, message)
        read = 0

        async def limited() -> Any:
            nonlocal read
            event = await receive()
            if event["type"] == "http.request":
                read += len(event.get("body", b""))
                if read > self.most_bytes:
                    raise HTTPException(413, message)  # the one exception that FastAPI passes on while it reads
            return event

        return limited


def _host_name(host: str) -> str:
    """A ``Host`` header without its port."""
    name, _, port = host.strip().lower().rpartition(":")
    return name if name and port.isdecimal() else host.strip().lower()
