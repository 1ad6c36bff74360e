"""``Sidecar``: asks ``promptlora serve --adapters-only`` for adapters, and keeps what it has asked.

It knows HTTP and the store; nothing of vLLM. Texts of prompts are kept nowhere, only their hashes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from promptlora_vllm.settings import Settings
from promptlora_vllm.store import Store, StoreError

_REMEMBERED = 65_536  # prompts whose ids are kept
_FRESH = 300.0  # seconds after which the sidecar is asked again for the id of a prompt: its hypernetwork can change


class SidecarError(RuntimeError):
    """No adapter from the sidecar.

    Args:
        message: What was wrong, what was expected, and the fix.
        status: The HTTP status for the client.
        code: A word that programs can compare.
        retry_after: Seconds after which a client may try again; None where that is of no use.
    """

    def __init__(self, message: str, status: int, code: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after


class UnknownAdapterError(SidecarError):
    """The sidecar has no adapter of that id."""


class Sidecar:
    """Adapters by prompt and by id.

    Args:
        settings: Address and key of the sidecar.
        store: Where PEFT folders are kept.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings, self.store = settings, store
        self._ids: OrderedDict[str, tuple[str, float]] = OrderedDict()  # hash of what was asked -> id, and when
        self._running: dict[tuple[str, str], asyncio.Task[Any]] = {}
        self._client: httpx.AsyncClient | None = None

    async def write(
        self, prompt: str, examples: list[Mapping[str, str]] | None = None, in_context: bool = False
    ) -> str:
        """The id of the adapter of a prompt, whose folder is in the store when this returns.

        Many requests for one prompt ask once. A prompt whose id is known is answered without the sidecar.

        Args:
            prompt: The text.
            examples: ``{input, output}`` each, read with the prompt.
            in_context: Whether the base reads the prompt too.

        Raises:
            SidecarError: The sidecar cannot be reached, or refuses the prompt.
            StoreError: The folder cannot be written.
        """
        body = {"prompt": prompt, "examples": list(examples or ()), "in_context": in_context}
        asked = json.dumps(body, sort_keys=True).encode()
        digest = hashlib.sha256(asked).hexdigest()
        known, when = self._ids.get(digest, ("", 0.0))
        if known and time.monotonic() - when < _FRESH and self.store.get(known):
            self._ids.move_to_end(digest)
            return known
        try:
            key: str = await self._once(("write", digest), self._write, asked)
        except SidecarError as error:
            if known and error.status == 503 and self.store.get(known):
                return known  # the sidecar is away; what it wrote is still right
            raise
        self._ids[digest] = key, time.monotonic()
        self._ids.move_to_end(digest)
        while len(self._ids) > _REMEMBERED:
            self._ids.popitem(last=False)
        return key

    async def folder(self, key: str) -> Path:
        """The PEFT folder of an id, downloaded where it is not in the store.

        Raises:
            UnknownAdapterError: The sidecar has none of that id.
            SidecarError: The sidecar cannot be reached.
            StoreError: The folder cannot be written.
        """
        found = self.store.get(key)
        return found if found is not None else await self._once(("folder", key), self._download, key)

    async def aclose(self) -> None:
        """Close the connections; the next question opens new ones."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    async def _once(self, name: tuple[str, str], work: Any, argument: Any) -> Any:
        """Await work that others may be waiting for too; whoever leaves does not cancel it."""
        task = self._running.get(name)
        if task is None:
            task = self._running[name] = asyncio.create_task(work(argument))
            task.add_done_callback(lambda _: self._running.pop(name, None))
        return await asyncio.shield(task)

    async def _write(self, body: bytes) -> str:
        answer = await self._ask("POST", "/v1/adapters", content=body, headers={"Content-Type": "application/json"})
        try:
            key = str(answer.json()["id"])
            self.store.path(key)
        except (ValueError, KeyError, TypeError, StoreError) as error:
            raise _unexpected(self.settings.sidecar) from error
        await self.folder(key)
        return key

    async def _download(self, key: str) -> Path:
        answer = await self._ask("GET", f"/v1/adapters/{key}/peft", params={"card": "false"})
        return await asyncio.to_thread(self.store.put, key, answer.content)

    async def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        if self._client is None:
            self._client = httpx.AsyncClient(**client_options(self.settings))
        try:
            answer = await self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise unreachable(self.settings, error) from error
        check(answer, self.settings)
        return answer


def client_options(settings: Settings) -> dict[str, Any]:
    """The options of an HTTP client of the sidecar; proxies of the environment are not for loopback."""
    headers = {"Authorization": f"Bearer {settings.key}"} if settings.key else {}
    return {
        "base_url": settings.sidecar,
        "headers": headers,
        "timeout": httpx.Timeout(settings.timeout, connect=min(5.0, settings.timeout)),
        "trust_env": False,
    }


def unreachable(settings: Settings, error: Exception) -> SidecarError:
    """The error of a sidecar that does not answer."""
    return SidecarError(
        f"{settings.sidecar}: the sidecar does not answer ({type(error).__name__}). Expected `promptlora serve "
        "--adapters-only` there. Fix: start it, or set PROMPTLORA_SIDECAR.",
        503,
        "sidecar_unavailable",
        retry_after=5,
    )


def check(answer: httpx.Response, settings: Settings) -> None:
    """Nothing for a success.

    Raises:
        UnknownAdapterError: The answer is that there is no such adapter.
        SidecarError: Any other failure; what is wrong with a prompt is passed on to the client.
    """
    if answer.is_success:
        return
    try:
        told = answer.json()["error"]
        message, code = str(told["message"]), str(told.get("code"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _unexpected(settings.sidecar) from None
    if answer.status_code == 404 and code == "adapter_not_found":
        raise UnknownAdapterError(message, 404, code)
    if answer.status_code in (400, 413):
        raise SidecarError(message, answer.status_code, code)
    if answer.status_code in (401, 403):
        fix = f"The sidecar refuses the plugin ({answer.status_code}). Fix: set PROMPTLORA_SIDECAR_KEY."
        raise SidecarError(fix, 502, "sidecar_refuses")
    raise SidecarError(f"The sidecar failed: {message}", 503, "sidecar_failed", retry_after=5)


def _unexpected(address: str) -> SidecarError:
    return SidecarError(
        f"{address}: not the answer of a sidecar. Expected `promptlora serve --adapters-only` there. "
        "Fix: set PROMPTLORA_SIDECAR.",
        502,
        "sidecar_unexpected",
    )
