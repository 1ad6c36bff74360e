"""What a server may be told: names, keys and limits."""

from __future__ import annotations

from dataclasses import dataclass, fields

from promptlora.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the HTTP server.

    Attributes:
        model_name: The name of the plain base.
        api_keys: Keys that are let in; none lets everyone in.
        local: Whether the server is on a loopback address.
        adapters_only: Leave out everything that generates text.
        most_bytes: Largest body of a request.
        default_tokens: Longest answer of a request that does not say one.
        most_tokens: Longest answer of any request.
        deadline: Seconds after which an answer ends, if the request does not say earlier.
        most_answers: Most answers of one request.
        most_requests: Most requests that are open at one time, streams included.
        most_writes: Most new adapters that requests wait for at one time.
        most_jobs: Most refinements that wait or run.

    Raises:
        ConfigError: A number that is not positive, or a name that stands for something else.
    """

    model_name: str
    api_keys: tuple[str, ...] = ()
    local: bool = True
    adapters_only: bool = False
    most_bytes: int = 4 << 20
    default_tokens: int = 256
    most_tokens: int = 2048
    deadline: float = 300.0
    most_answers: int = 64
    most_requests: int = 1024
    most_writes: int = 256
    most_jobs: int = 16

    def __post_init__(self) -> None:
        if self.model_name == "promptlora" or self.model_name.startswith("adapter:") or not self.model_name.strip():
            raise ConfigError(f"model name {self.model_name!r}: means something else. Expected a name of the base.")
        for name in (field.name for field in fields(self) if field.type in ("int", "float")):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: {getattr(self, name)!r}. Expected a positive number.")
