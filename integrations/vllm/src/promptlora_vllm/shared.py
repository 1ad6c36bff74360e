"""The one sidecar client of a process: vLLM creates middleware and resolver apart, and both must know the same adapters."""

from __future__ import annotations

from functools import cache

from promptlora_vllm.settings import Settings
from promptlora_vllm.sidecar import Sidecar
from promptlora_vllm.store import Store


@cache
def sidecar() -> Sidecar:
    """The sidecar client, made when it is first asked for.

    Raises:
        SettingsError: An environment variable with a value of no use.
        StoreError: The store cannot be used.
    """
    settings = Settings.read()
    return Sidecar(settings, Store(settings.store, most_bytes=settings.store_bytes, keep=settings.keep))
