"""What a request asks for, and what comes back while it runs: ``Sampling``, ``Piece`` and ``Ticket``.

It knows ids and text; nothing of models, batches or adapters.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Literal
from weakref import finalize

from promptlora.errors import ConfigError, PromptLoRAError

FinishReason = Literal["stop", "length", "cancelled", "deadline"]
MOST_LOGPROBS = 20  # alternatives per token, as in OpenAI's API
MOST_STOPS = 16


class QueueFull(PromptLoRAError):  # noqa: N818 (a state of the engine, as queue.Full is)
    """The engine has as many waiting requests as it takes.

    Attributes:
        retry_after: Seconds after which a place is likely to be free.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineError(PromptLoRAError, RuntimeError):
    """The engine failed or was closed while a request ran."""


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are chosen.

    Attributes:
        max_tokens: Most tokens that are generated.
        temperature: 0 takes the most likely token; above it, logits are divided by this before sampling.
        top_p: Only the most likely tokens whose probabilities add up to this are sampled.
        stop: Texts at which the answer ends; they are not part of it.
        seed: Makes a sampled answer repeatable, whatever else is in the batch.
        logprobs: How many alternatives per token are reported with their log-probabilities; None reports none, 0 that of the
            chosen token alone. They are those of the model, before temperature and ``top_p``.

    Raises:
        ConfigError: A value out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "a whole number of 1 or more")
        _check(
            math.isfinite(self.temperature) and 0 <= self.temperature <= 100,
            "temperature",
            self.temperature,
            "a number from 0 to 100",
        )
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "a number above 0 and up to 1")
        _check(
            len(self.stop) <= MOST_STOPS and all(self.stop),
            "stop",
            self.stop,
            f"up to {MOST_STOPS} texts that are not empty",
        )
        _check(
            self.seed is None or -(1 << 63) <= self.seed < 1 << 63,
            "seed",
            self.seed,
            "a whole number of at most 64 bits",
        )
        _check(
            self.logprobs is None or 0 <= self.logprobs <= MOST_LOGPROBS,
            "logprobs",
            self.logprobs,
            f"a whole number from 0 to {MOST_LOGPROBS}",
        )


def _check(good: bool, name: str, value: object, expected: str) -> None:
    if not good:
        raise ConfigError(f"{name}: {value!r}. Expected {expected}.")


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a generated token, in nats, and the most likely alternatives.

    Attributes:
        token_id: The token.
        text: Its text alone; a part of a character reads as the replacement character.
        logprob: Its log-probability.
        top: ``(token_id, text, logprob)`` of the most likely tokens, the most likely first.
    """

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What a running request gives: the answer so far is the concatenation of the texts.

    Text may lag behind tokens: half a character, and text that may be the beginning of a stop text, wait for what follows.

    Attributes:
        text: The new text; it may be empty.
        token_ids: The new tokens; the token that ends an answer is the last one and has no text.
        logprobs: One for each of ``token_ids`` where they were asked for.
        finish_reason: None except in the last piece: ``stop`` (the model ended its answer, or a stop text came), ``length``
            (``max_tokens`` was reached), ``cancelled`` or ``deadline``.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: FinishReason | None


class Outbox:
    """The pieces of one request between the engine's thread and whoever reads them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pieces: deque[Piece | BaseException] = deque()
        self._listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self.ended = False  # the last piece, or an error, is in it

    def put(self, piece: Piece | BaseException) -> None:
        """Add a piece, or the error with which the request ends; after the last one, nothing is added."""
        with self._changed:
            if self.ended:
                return
            self.ended = isinstance(piece, BaseException) or piece.finish_reason is not None
            self._pieces.append(piece)
            self._changed.notify_all()
            for loop, event in self._listeners:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)

    def take(self) -> Piece | BaseException | None:
        """The oldest piece that was not taken; None if there is none yet."""
        with self._changed:
            return self._pieces.popleft() if self._pieces else None

    def wait(self) -> Piece | BaseException:
        """The oldest piece that was not taken, as soon as there is one."""
        with self._changed:
            while not self._pieces:
                self._changed.wait()
            return self._pieces.popleft()

    def listen(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        """Set an event of a loop whenever a piece is added."""
        with self._changed:
            self._listeners.append((loop, event))

    def forget(self, event: asyncio.Event) -> None:
        """End what :meth:`listen` began."""
        with self._changed:
            self._listeners = [one for one in self._listeners if one[1] is not event]


class Ticket:
    """One request: iterate over its pieces, with ``for`` or with ``async for``, once.

    A ticket that is dropped, and an iteration that is left before the last piece, cancel the request.

    Args:
        outbox: Where the pieces come from.
        cancel: Ends the request; it may be called more than once and from any thread.
        prompt_tokens: How many tokens the base reads.

    Attributes:
        prompt_tokens: How many tokens the base reads before the answer.
    """

    def __init__(self, outbox: Outbox, cancel: Callable[[], None], prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self._outbox, self._cancel = outbox, cancel
        self._taken = False
        finalize(self, cancel).atexit = False

    def cancel(self) -> None:
        """End the request at the next step; its last piece has the finish reason ``cancelled``."""
        self._cancel()

    def __iter__(self) -> Iterator[Piece]:
        self._take()
        return self._pieces()

    def __aiter__(self) -> AsyncIterator[Piece]:
        self._take()
        return self._async_pieces()

    def _take(self) -> None:
        if self._taken:
            raise EngineError("ticket: iterated over twice. Expected once. Fix: keep the pieces.")
        self._taken = True

    def _pieces(self) -> Iterator[Piece]:
        try:
            while True:
                piece = self._outbox.wait()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            self._cancel()

    async def _async_pieces(self) -> AsyncIterator[Piece]:
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        self._outbox.listen(loop, event)
        try:
            while True:
                event.clear()
                piece = self._outbox.take()
                if piece is None:
                    await event.wait()
                    continue
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            self._outbox.forget(event)
            self._cancel()
