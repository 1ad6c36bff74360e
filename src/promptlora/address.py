"""Addresses to listen on: refused in one line, and held before anything slow is done.

It knows sockets; nothing of what is served.
"""

from __future__ import annotations

import ipaddress
import socket

from promptlora.errors import ConfigError, one_line


def bind(host: str, port: int) -> socket.socket:
    """A socket that holds an address without listening: others cannot take it, and clients are refused until it listens.

    Args:
        host: An address or a name of this machine.
        port: 0 takes a free one.

    Raises:
        ConfigError: A port that is in use or not allowed, or a host that is not this machine's.
    """
    held: socket.socket | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        held = socket.socket(found[0][0], socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(found[0][4])
    except (OSError, OverflowError, UnicodeError) as error:
        if held is not None:
            held.close()
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ConfigError(
            f"host {host}, port {port}: cannot be served ({reason}); expected an address of this machine and a free "
            "port; choose another port"
        ) from error
    return held


def check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be served.

    Raises:
        ConfigError: As for :func:`bind`.
    """
    bind(host, port).close()


def url_of(listener: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches a bound socket."""
    return ipaddress.ip_address(str(listener.getsockname()[0]).partition("%")[0]).is_loopback
