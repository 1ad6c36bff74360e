"""What all endpoints share: the model, the engine, the adapters, and which of them a request may use.

It knows prompts, adapters and owners; nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from cachetools import LRUCache
from starlette.concurrency import run_in_threadpool

from promptlora import __version__
from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.engine import AdapterCache, AdapterEntry, AdapterWriter, Engine
from promptlora.errors import NoRoomError, OutputError
from promptlora.hypernet.distance import PromptDistance
from promptlora.lora import LoRAWeights
from promptlora.lora.origin import AdapterOrigin
from promptlora.reading import reason_of
from promptlora.server.errors import ApiError, too_many
from promptlora.server.jobs import Jobs
from promptlora.server.metrics import Metrics
from promptlora.server.owners import Owners
from promptlora.server.schema import Example, PromptField
from promptlora.server.security import NOBODY
from promptlora.server.settings import Settings
from promptlora.text import with_examples

log = logging.getLogger("promptlora.server")
T = TypeVar("T")
WRITER = "promptlora"  # the model that writes an adapter for the system message
STORED = "adapter:"
_NO_FIELD = PromptField.model_validate({})
_DISTANCES = 65_536  # that are remembered
_LONG = 16_384  # characters of a prompt whose tokens are counted before the engine sees it
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Chosen:
    """The adapter of one request.

    Attributes:
        lora: None is the base.
        key: Its id.
        prompt: The prompt that it stands for, where the request says it.
        in_context: Whether the base reads that prompt too.
    """

    lora: LoRAWeights | None = None
    key: str | None = None
    prompt: str | None = None
    in_context: bool = False


class Service:
    """The parts of a running server.

    Args:
        lm: Base and hypernetwork.
        writer: Writes the adapters; an :class:`Engine` where text is generated too.
        cache: The engine's adapters.
        settings: Names and limits.
        folder: Where adapters are kept between runs; None keeps none.
    """

    def __init__(
        self,
        lm: PromptLoRA,
        writer: AdapterWriter,
        cache: AdapterCache,
        settings: Settings,
        folder: Path | None = None,
    ) -> None:
        self.lm, self.writer, self.cache, self.settings = lm, writer, cache, settings
        self.owners = Owners(None if folder is None else folder / "owners")
        self.jobs = Jobs(most=settings.most_jobs)
        self.metrics = Metrics(writer)
        self.started = int(time.time())
        self.special = frozenset(int(each) for each in lm.tokenizer.all_special_ids)
        self.fingerprint = f"promptlora-{__version__}-{str(lm.host.fingerprint.get('weights', ''))[:8]}"
        self._deciding = asyncio.Lock()  # held while an adapter gets its first owner or loses its last one
        self._writing = 0  # requests that wait for an adapter
        self._distances: LRUCache[str, PromptDistance | None] = LRUCache(_DISTANCES)
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="promptlora-text")

    @property
    def engine(self) -> Engine:
        """What generates text; a server with ``adapters_only`` has none."""
        assert isinstance(self.writer, Engine)
        return self.writer

    def close(self, timeout: float | None = None) -> None:
        """Finish the answers that run, cancel the jobs, and end all threads.

        Args:
            timeout: Seconds after which answers are cancelled.
        """
        self.jobs.close()
        self.writer.close(drain=True, timeout=timeout)
        self._readers.shutdown(cancel_futures=True)

    async def aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run work on texts or files in a thread, so that streams go on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work, *arguments)

    # --- adapters --------------------------------------------------------------------------------------

    async def write(
        self, owner: str, prompt: str, examples: Sequence[Example] = (), in_context: bool = False
    ) -> AdapterEntry:
        """The adapter of a prompt, which the owner may use from now on.

        Raises:
            PromptError: A prompt that is empty or too long.
            ApiError: Many requests wait for new adapters already.
        """
        pairs = [(example.input, example.output) for example in examples]
        if (
            len(prompt) + sum(map(len, chain(*pairs))) > _LONG
        ):  # the engine, where answers wait, refuses none of megabytes
            await self.aside(self.lm.states.encode, with_examples(prompt, pairs))
        if self._writing >= self.settings.most_writes:
            raise too_many("requests wait for new adapters", 5)
        self._writing += 1
        try:
            entry = await asyncio.wrap_future(self.writer.adapter(prompt, pairs, in_context))
        finally:
            self._writing -= 1
        async with self._deciding:  # its last owner may have deleted it since it was written
            if self.own(owner, entry.key) and await self.aside(self.cache.get, entry.key) is None:
                with suppress(NoRoomError):  # the answer needs no stored adapter
                    await self.aside(self.store, entry)
        return entry

    async def keep(self, entry: AdapterEntry) -> None:
        """Make sure that an adapter can be asked for by its id.

        Raises:
            NoRoomError: It is not on disk, and does not fit in memory.
        """
        if await self.aside(self.cache.get, entry.key) is None:
            await self.aside(self.store, entry)

    def store(self, entry: AdapterEntry, *, pin: bool = False) -> None:
        """Keep an adapter; on a full disk in memory alone.

        Args:
            entry: The adapter.
            pin: Never drop it: it cannot be written again from its prompt.

        Raises:
            NoRoomError: It is not on disk, and does not fit in memory.
        """
        try:
            self.cache.put(entry, pin=pin)
        except OutputError as error:
            log.warning("%s", error)

    def own(self, owner: str, key: str) -> bool:
        """Let an owner use an adapter from now on; whether it could not before."""
        return owner != NOBODY and self.owners.grant(owner, key)

    def created(self, owner: str, entry: AdapterEntry) -> float:
        """When an adapter came to be for an owner, which does not tell that another one had it before."""
        return max(entry.created, (owner != NOBODY and self.owners.since(owner, entry.key)) or 0.0)

    async def measure(self, key: str, prompt: str) -> PromptDistance | None:
        """How far the prompt of an adapter is from the training prompts; None where the hypernetwork does not say."""
        if key not in self._distances:
            found = await run_in_threadpool(self.lm.distances, prompt)  # it may wait for the model's turn
            self._distances[key] = found[0] if found else None
        return self._distances.get(key)

    def distance(self, key: str) -> PromptDistance | None:
        """What :meth:`measure` found, if it is known."""
        return self._distances.get(key)

    async def find(self, owner: str, key: str) -> AdapterEntry:
        """A stored adapter.

        Raises:
            ApiError: There is none, or the owner has none of that id.
        """
        allowed = _KEY.fullmatch(key) is not None and (owner == NOBODY or self.owners.owns(owner, key))
        entry = self.cache.remembered(key) if allowed else None
        if entry is None and allowed:
            entry = await self.aside(self.cache.get, key)
        if entry is None:
            raise ApiError(
                404,
                f"adapter {key[:80]!r}: not found. Expected the id of an adapter that was made with this API key. Fix: "
                "POST /v1/adapters with its prompt.",
                code="adapter_not_found",
            )
        return entry

    async def all(self, owner: str) -> list[str]:
        """The ids of the adapters that an owner may use."""
        stored = await self.aside(self.cache.list)
        if owner == NOBODY:
            return list(stored)
        there = set(stored)
        return [key for key in self.owners.of(owner) if key in there]

    async def forget(self, owner: str, key: str) -> None:
        """Delete an adapter of an owner; it stays stored while others own it.

        Raises:
            ApiError: The owner has none of that id, or its file cannot be removed; the owner has it still then.
        """
        await self.find(owner, key)
        async with self._deciding:
            try:
                if owner == NOBODY or self.owners.revoke(owner, key):
                    await self.aside(self.cache.delete, key)
            except OSError as error:
                log.warning("adapter %s: cannot be deleted (%s)", key[:16], reason_of(error))
                self.own(owner, key)
                raise ApiError(
                    500,
                    f"adapter {key!r}: its file cannot be removed ({reason_of(error)}). Expected a folder (`--adapter-dir`) that the "
                    "server may change. Fix: make it writable, and delete the adapter again.",
                    code="not_deleted",
                ) from error

    # --- models ----------------------------------------------------------------------------------------

    async def choose(self, owner: str, model: str, field: PromptField | None, system: str | None) -> Chosen:
        """The adapter that a request asks for, written if need be.

        Args:
            owner: Who asks.
            model: The model's name in the request.
            field: The field ``promptlora`` of the request.
            system: The text of the system messages.

        Raises:
            ApiError: An unknown model, or a field that does not go with it.
            PromptError: A prompt that is empty or too long.
        """
        field = field or _NO_FIELD
        if model == WRITER:
            prompt = system if field.prompt is None else field.prompt
            if prompt is None and field.examples:
                raise ApiError(400, "promptlora.examples: no prompt. Expected one beside them.", param="promptlora")
            if prompt is None:
                return Chosen()
            entry = await self.write(owner, prompt, field.examples, field.in_context)
            return Chosen(_strong(entry.lora, field.strength), entry.key, prompt, field.in_context)
        if model.startswith(STORED) and not field.examples:
            entry = await self.find(owner, model.removeprefix(STORED))
            if entry.in_context or not (field.prompt or field.in_context):
                prompt = _prompt_beside(entry, field)
                return Chosen(_strong(entry.lora, field.strength), entry.key, prompt, entry.in_context)
        if field.prompt is not None or field.examples or field.in_context:
            raise ApiError(
                400,
                f"promptlora: a prompt for the model {model[:80]!r}. Expected the model {WRITER!r}.",
                param="promptlora",
                code="wrong_model",
            )
        if model == self.settings.model_name:
            if field.strength != 1:
                raise ApiError(400, "promptlora.strength: the base has no adapter.", param="promptlora.strength")
            return Chosen()
        raise unknown_model(model, self.settings.model_name)


def _prompt_beside(entry: AdapterEntry, field: PromptField) -> str | None:
    """The prompt that the base reads beside a stored adapter; None where the adapter was written to do without.

    Prompts are not stored, so the request says it.

    Raises:
        ApiError: No prompt for an adapter that needs it in the context, or another one.
    """
    if not entry.in_context:
        return None
    if field.prompt is None:
        raise ApiError(
            400,
            f"adapter {entry.key!r}: written for a base that also reads its prompt, which is not stored. Expected "
            "promptlora.prompt with that prompt in the request.",
            param="promptlora.prompt",
            code="prompt_missing",
        )
    (known, *_) = [*(record.get("prompt_sha256") for record in entry.lora.provenance), None]
    if known is not None and known != AdapterOrigin(field.prompt).digest:
        raise ApiError(
            400,
            f"promptlora.prompt: not the prompt of adapter {entry.key!r}. Expected the one that it was written for.",
            param="promptlora.prompt",
            code="wrong_prompt",
        )
    return field.prompt


def unknown_model(model: str, base: str) -> ApiError:
    """The error of a model that there is not."""
    return ApiError(
        404,
        f"The model `{model[:80]}` does not exist. Expected {base!r}, {WRITER!r} or '{STORED}<id>'; see /v1/models.",
        param="model",
        code="model_not_found",
    )


def _strong(lora: LoRAWeights, strength: float) -> LoRAWeights:
    return lora if strength == 1 else LoRAWeights.combine([lora], [strength])
