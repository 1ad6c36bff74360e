"""Write the folder of an evicted adapter again before vLLM loads it.

vLLM keeps ``--max-cpu-loras`` adapters and reads the folders of others again when they are next used, in the middle of a
step: where a folder has gone, the whole engine ends. ``install`` replaces ``WorkerLoRAManager._load_adapter`` by one that
asks the sidecar first. Normally nothing is missing: the middleware has looked for the folder when the request arrived.
"""

from __future__ import annotations

import functools
import logging
import time
from pathlib import Path
from typing import Any

import httpx

from promptlora_vllm.settings import PREFIX, Settings
from promptlora_vllm.sidecar import SidecarError, check, client_options, unreachable
from promptlora_vllm.store import Store, is_key

log = logging.getLogger("vllm.promptlora")
_MARK = "_promptlora_reloading"


def install() -> None:
    """Replace the method once; its subclass with an LRU cache inherits it."""
    from vllm.lora.worker_manager import WorkerLoRAManager

    load = WorkerLoRAManager._load_adapter
    if hasattr(load, _MARK):
        return

    @functools.wraps(load)
    def loading(self: Any, lora_request: Any) -> Any:
        key = lora_request.lora_name.removeprefix(PREFIX)
        if not lora_request.lora_name.startswith(PREFIX) or not is_key(key):
            return load(self, lora_request)
        settings = Settings.read()
        folder = Path(lora_request.lora_path)
        store = Store(folder.parent, most_bytes=settings.store_bytes, keep=settings.keep)
        for _ in range(2):  # another process can remove it between the two lines
            ensure(store, key, settings)
            with store.reading():
                if store.get(key) is not None:
                    return load(self, lora_request)
        return load(self, lora_request)

    setattr(loading, _MARK, True)
    WorkerLoRAManager._load_adapter = loading


def ensure(store: Store, key: str, settings: Settings) -> Path:
    """The folder of an adapter, downloaded where it is missing; waits for a sidecar that is being restarted.

    Args:
        store: The store.
        key: The id.
        settings: Address of the sidecar, and for how many seconds it is tried.

    Raises:
        SidecarError: No adapter within that time.
        StoreError: It cannot be written.
    """
    end, told = time.monotonic() + settings.timeout, False
    while (found := store.get(key)) is None:
        try:
            return store.put(key, _download(key, settings))
        except SidecarError as error:
            if error.retry_after is None or time.monotonic() > end:
                raise
            if not told:
                log.warning("adapter %s: its folder has gone, and the engine waits: %s", key[:16], error)
                told = True
            time.sleep(0.5)
    return found


def _download(key: str, settings: Settings) -> bytes:
    with httpx.Client(**client_options(settings)) as client:
        try:
            answer = client.get(f"/v1/adapters/{key}/peft", params={"card": "false"})
        except httpx.TransportError as error:
            raise unreachable(settings, error) from error
    check(answer, settings)
    return answer.content
