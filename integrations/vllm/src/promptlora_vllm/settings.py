"""Settings of the plugin, from environment variables: vLLM passes no options to its plugins, and each of its processes reads them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

WRITER = "promptlora"  # the model whose system message becomes an adapter
PREFIX = "promptlora:"  # before the id of an adapter in a model name of vLLM
STORED = "adapter:"  # the same in a model name of `promptlora serve`
_MEMORY = Path("/dev/shm")


class SettingsError(ValueError):
    """An environment variable with a value of no use."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where adapters come from and where they are kept.

    Attributes:
        sidecar: Address of ``promptlora serve --adapters-only`` (``PROMPTLORA_SIDECAR``).
        key: API key of the sidecar (``PROMPTLORA_SIDECAR_KEY``); empty for none.
        store: Folder with one PEFT folder for each adapter (``PROMPTLORA_STORE``).
        store_bytes: Size above which folders that have not been used for ``keep`` seconds are removed
            (``PROMPTLORA_STORE_MB``).
        keep: Seconds for which a folder stays after its last use, whatever the size (``PROMPTLORA_STORE_KEEP``).
        timeout: Seconds to wait for the sidecar (``PROMPTLORA_TIMEOUT``).
        empty_system: Whether an empty system message stands in place of the one that became an adapter
            (``PROMPTLORA_EMPTY_SYSTEM``; 0 for chat templates that refuse a system message).
        runtime_loading: Whether clients may load and unload adapters by path, which vLLM allows together with resolvers
            (``PROMPTLORA_RUNTIME_LOADING``).
    """

    sidecar: str = "http://127.0.0.1:8422"
    key: str = ""
    store: Path = _MEMORY / "promptlora-vllm"
    store_bytes: int = 1 << 30
    keep: float = 600.0
    timeout: float = 60.0
    empty_system: bool = True
    runtime_loading: bool = False

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """The settings of this process.

        Raises:
            SettingsError: A variable with a value of no use.
        """
        sidecar = environment.get("PROMPTLORA_SIDECAR", cls.sidecar).rstrip("/").removesuffix("/v1")
        if not sidecar.startswith(("http://", "https://")):
            raise SettingsError(f"PROMPTLORA_SIDECAR: {sidecar!r}. Expected an address such as {cls.sidecar}.")
        store = Path(environment.get("PROMPTLORA_STORE") or _default_store())
        megabytes = _number(environment, "PROMPTLORA_STORE_MB", 0)
        return cls(
            sidecar=sidecar,
            key=environment.get("PROMPTLORA_SIDECAR_KEY", ""),
            store=store,
            store_bytes=int(megabytes * 1e6) or _half_of(store),
            keep=_number(environment, "PROMPTLORA_STORE_KEEP", cls.keep),
            timeout=_number(environment, "PROMPTLORA_TIMEOUT", cls.timeout),
            empty_system=_flag(environment, "PROMPTLORA_EMPTY_SYSTEM", cls.empty_system),
            runtime_loading=_flag(environment, "PROMPTLORA_RUNTIME_LOADING", cls.runtime_loading),
        )


def _default_store() -> Path:
    """A folder of this user in the memory file system, or in the folder for temporary files where there is none."""
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(os.environ.get("TMPDIR", "/tmp"))
    return parent / f"promptlora-vllm-{os.getuid()}"


def _half_of(store: Path) -> int:
    """Half of the file system that a folder is, or will be, on."""
    there = next((place for place in (store, *store.parents) if place.exists()), Path("/"))
    return shutil.disk_usage(there).total // 2


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise SettingsError(f"{name}: {text!r}. Expected a number that is not negative.")
    return value


def _flag(environment: Mapping[str, str], name: str, default: bool) -> bool:
    text = environment.get(name) or str(int(default))
    if text not in ("0", "1"):
        raise SettingsError(f"{name}: {text!r}. Expected 0 or 1.")
    return text == "1"
