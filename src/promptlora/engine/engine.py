"""``Engine``: a queue of requests, each with its own adapter, run as one mixed batch by one thread.

The thread owns the batch. Other threads put requests, cancellations and work into its inbox, and read pieces from tickets.
Between two steps the model is free: other calls to the same ``PromptLoRA`` get their turn, and one piece of other work is
done. It knows requests, text and time; what runs a step is ``batch``.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeVar

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.engine.batch import Batch, Token
from promptlora.engine.cache import AdapterCache
from promptlora.engine.requests import (
    EngineError,
    FinishReason,
    Outbox,
    Piece,
    QueueFull,
    Sampling,
    Ticket,
    TokenLogprob,
)
from promptlora.engine.storage import AdapterEntry
from promptlora.engine.text import TextStream, backend_of
from promptlora.engine.writing import Task, single, write_adapter
from promptlora.errors import LoRAError, PromptError, one_line
from promptlora.lora import LoRAWeights
from promptlora.settings import whole

T = TypeVar("T")

_KV_TOKENS = 512  # places of the key-value cache for each request of a full batch, if nothing else is asked for
_KV_LONGEST = 8192  # places that one request may have then, if the base takes as many
_SMOOTHING = 0.1  # weight of the newest request in the mean time that a request takes
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineStats:
    """What the engine does and has done.

    Attributes:
        running: Requests in the batch.
        waiting: Requests in the queue.
        finished: Requests that have ended, whatever the reason.
        cancelled: Those of them that were cancelled or abandoned.
        expired: Those of them that ran into their deadline.
        failed: Those of them that ended with an error.
        prompt_tokens: Tokens of the inputs of all requests that have run.
        reused_tokens: Those of them whose keys and values were there already.
        generated_tokens: Tokens that were generated.
        steps: Forward passes.
        step_seconds: Time of all forward passes, waiting for the model's turn included.
        adapters: Adapters in memory.
        adapter_bytes: Their bytes.
        slot_bytes: Bytes of the slots that adapters are copied into while they run.
        adapters_written: Adapters that the hypernetwork wrote.
        adapters_hit: Requests for an adapter that was there.
        adapters_not_kept: Adapters that could not be written to disk.
        kv_tokens: Places of the key-value cache that running requests hold.
        kv_capacity: Places that it has.
    """

    running: int = 0
    waiting: int = 0
    finished: int = 0
    cancelled: int = 0
    expired: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    adapters: int = 0
    adapter_bytes: int = 0
    slot_bytes: int = 0
    adapters_written: int = 0
    adapters_hit: int = 0
    adapters_not_kept: int = 0
    kv_tokens: int = 0
    kv_capacity: int = 0


class _Request:
    """One request between its submission and its last piece."""

    def __init__(
        self, name: str, ids: tuple[int, ...], adapter: LoRAWeights | None, sampling: Sampling, expires: float | None
    ) -> None:
        self.name, self.ids, self.adapter, self.sampling, self.expires = name, ids, adapter, sampling, expires
        self.outbox = Outbox()
        self.text: TextStream | None = None
        self.cancelled = False
        self.began = 0.0

    def over(self, now: float) -> FinishReason | None:
        """Why the request ends without another token; None if it goes on."""
        if self.cancelled:
            return "cancelled"
        return "deadline" if self.expires is not None and now >= self.expires else None


class Engine:
    """Runs requests of different adapters, and of the base, as one batch that requests join and leave at any token.

    Requests join in the order of submission. Equal beginnings of inputs are read once for each adapter: a conversation that
    goes on is not read again. ``with Engine(lm) as engine: …`` closes it at the end.

    Args:
        lm: The base and its hypernetwork; other calls to it still get their turn between two steps.
        max_batch: Most requests that run at once.
        max_waiting: Most requests that wait.
        max_prefill_tokens: Most input tokens of newcomers that one step reads, so that running answers do not stall.
        cache: Where adapters are kept; by default 256 MB of memory and no disk.
        kv_tokens: Places of the key-value cache, for all requests together; by default 512 for each of ``max_batch``, and
            at least 8192 or as many as the base takes.

    Raises:
        ConfigError: A number below 1, or a key-value cache that does not fit in memory.
        ModelError: A base that transformers' continuous batching does not run (linear attention, eager attention).
    """

    def __init__(
        self,
        lm: PromptLoRA,
        *,
        max_batch: int = 16,
        max_waiting: int = 128,
        max_prefill_tokens: int = 512,
        cache: AdapterCache | None = None,
        kv_tokens: int | None = None,
    ) -> None:
        for name, value in (
            ("max_batch", max_batch),
            ("max_waiting", max_waiting),
            ("max_prefill_tokens", max_prefill_tokens),
            ("kv_tokens", 1 if kv_tokens is None else kv_tokens),
        ):
            whole(name, value)
        backend_of(lm.tokenizer)
        self.lm, self.max_batch, self.max_waiting = lm, max_batch, max_waiting
        positions = int(getattr(lm.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 31)
        if kv_tokens is None:  # a key-value cache is memory that is taken at once
            kv_tokens = max(_KV_TOKENS * max_batch, min(positions, _KV_LONGEST))
        self.cache = AdapterCache(lm) if cache is None else cache
        self._batch = Batch(
            lm.host,
            max_batch=max_batch,
            max_prefill_tokens=max_prefill_tokens,
            kv_tokens=kv_tokens,
        )
        self._longest = min(self._batch.kv_capacity, positions)
        self._vocabulary = int(lm.model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
        ends: Any = getattr(lm.model.generation_config, "eos_token_id", None)
        self._ends = tuple(int(end) for end in (ends if isinstance(ends, list) else [] if ends is None else [ends]))
        # A SimpleQueue may be put to by a finalizer at any moment, in the middle of a call of this class too.
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of what follows; never held while the model runs
        self._stats = EngineStats(kv_capacity=self._batch.kv_capacity)
        self._in_queue = 0
        self._closing = False
        self._request_seconds = 1.0
        self._writing: dict[str, Task[AdapterEntry]] = {}
        self._names = count()
        # Of the engine's thread alone:
        self._waiting: deque[_Request] = deque()
        self._running: dict[str, _Request] = {}
        self._tasks: deque[Task[Any]] = deque()
        self._ending: str | None = None  # "drain" or "drop" once the thread is to end
        self._thread = threading.Thread(target=self._run, name="promptlora-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close, drain=False)  # no thread runs the model while the interpreter ends

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(drain=kind is None)

    # --- what others call ----------------------------------------------------------------------------------

    @property
    def stats(self) -> EngineStats:
        """Counters of this moment."""
        with self._lock:
            return replace(
                self._stats, waiting=self._in_queue, adapters=len(self.cache), adapter_bytes=self.cache.nbytes
            )

    @property
    def longest(self) -> int:
        """Most tokens that an input and its answer may have together."""
        return self._longest

    def submit(
        self, ids: Sequence[int], adapter: LoRAWeights | None, sampling: Sampling, *, deadline: float | None = None
    ) -> Ticket:
        """Put a request into the queue.

        Args:
            ids: What the base reads, its special tokens included.
            adapter: One adapter; None is the base.
            sampling: How tokens are chosen.
            deadline: Seconds from now after which the request ends, wherever it is.

        Raises:
            QueueFull: As many requests wait as may; it says when to try again.
            PromptError: No ids, an id that the base does not have, or more of them than the base or the key-value cache takes
                together with ``max_tokens``.
            LoRAError: More than one adapter, or one in another dtype than the base.
            EngineError: The engine is closed.
        """
        given = tuple(ids)
        odd = next((i for i in given if not 0 <= i < self._vocabulary), None)
        if not given or odd is not None:
            raise PromptError(
                f"ids: {'none' if odd is None else odd}. Expected at least one, each from 0 to {self._vocabulary - 1}."
            )
        if len(given) + sampling.max_tokens > self._longest:
            raise PromptError(
                f"input of {len(given)} tokens and max_tokens={sampling.max_tokens}. Expected at most {self._longest} together. "
                "Fix: shorten the input or max_tokens."
            )
        if adapter is not None and (adapter.adapters != 1 or adapter.dtype != self.lm.model.dtype):
            raise LoRAError(
                f"adapter: {adapter.adapters} adapters in {adapter.dtype}. Expected one in {self.lm.model.dtype}. "
                "Fix: use select and to."
            )
        expires = None if deadline is None else time.monotonic() + deadline
        request = _Request(f"{next(self._names)}", given, adapter, sampling, expires)
        with self._lock:
            if self._closing:
                raise EngineError("engine: closed. Expected an open one.")
            if self._in_queue >= self.max_waiting:
                after = max(0.5, min(60.0, self._request_seconds / self.max_batch))
                raise QueueFull(
                    f"queue: {self._in_queue} requests wait. Expected fewer than {self.max_waiting}. "
                    f"Fix: try again in {after:.1f} s.",
                    after,
                )
            self._in_queue += 1
            self._inbox.put(lambda: self._waiting.append(request))
        inbox = self._inbox

        def cancel() -> None:
            if not request.outbox.ended:
                request.cancelled = True
                inbox.put(_look)

        return Ticket(request.outbox, cancel, len(given))

    def between_steps(self, work: Callable[[], T]) -> Future[T]:
        """Run something on the engine's thread between two steps; it should be short, since all answers wait for it.

        Inside, the model is not held: use ``lm`` as anywhere else. A future that is cancelled in time runs nothing.

        Raises:
            EngineError: The engine is closed.
        """
        task = Task(single(work))
        with self._lock:
            self._give(task)
        return task.future

    def adapter(
        self, prompt: str, examples: Sequence[tuple[str, str]] = (), in_context: bool = False
    ) -> Future[AdapterEntry]:
        """The adapter of a prompt: from the cache, or written by the hypernetwork between two steps, in bounded pieces.

        Many requests for one new prompt write it once. The future raises what ``PromptLoRA.adapt`` raises; cancelling it
        cancels nothing for others.

        Args:
            prompt: The prompt.
            examples: Pairs of input and output that are read with it.
            in_context: Whether the base will also have the prompt in its context.

        Raises:
            EngineError: The engine is closed.
        """
        key = self.cache.key(prompt, examples, in_context)
        mine: Future[AdapterEntry] = Future()
        mine.set_running_or_notify_cancel()
        found = self.cache.remembered(key)
        if found is not None:
            self._count_adapter("hit")
            mine.set_result(found)
            return mine
        with self._lock:
            task = self._writing.get(key)
            if task is None:
                pieces = write_adapter(
                    self.lm, self.cache, key, prompt, tuple(examples), in_context, self._count_adapter
                )
                task = self._writing[key] = Task(pieces)
                self._give(task)
        task.future.add_done_callback(lambda _: self._written(key))
        task.future.add_done_callback(lambda done: _pass_on(done, mine))
        return mine

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests, and end the engine's thread; harmless when called twice.

        Args:
            drain: Finish the requests that run or wait first; False cancels them.
            timeout: Seconds after which those that still run are cancelled.
        """
        if threading.current_thread() is self._thread:
            raise EngineError("engine: closed from its own thread. Expected another one.")
        atexit.unregister(self.close)
        with self._lock:
            self._closing = True
        self._inbox.put(lambda: self._end("drain" if drain else "drop"))
        self._thread.join(timeout if drain else None)
        if self._thread.is_alive():
            self._inbox.put(lambda: self._end("drop"))
            self._thread.join()

    # --- helpers of these calls ----------------------------------------------------------------------------

    def _give(self, task: Task[Any]) -> None:
        """Put work into the inbox; with the lock held, so that none follows the end."""
        if self._closing:
            raise EngineError("engine: closed. Expected an open one.")
        self._inbox.put(lambda: self._tasks.append(task))

    def _written(self, key: str) -> None:
        with self._lock:
            self._writing.pop(key, None)

    def _count(self, **more: float) -> None:
        with self._lock:
            self._stats = replace(self._stats, **{name: getattr(self._stats, name) + n for name, n in more.items()})

    def _count_adapter(self, what: str) -> None:
        self._count(**{{"hit": "adapters_hit", "written": "adapters_written"}.get(what, "adapters_not_kept"): 1})

    # --- the engine's thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException = EngineError("engine: closed. Expected an open one.")
        try:
            while self._ending != "drop":
                self._read_inbox()
                self._sweep()
                self._admit()
                if self._running:
                    self._step()
                if self._tasks:
                    task = self._tasks.popleft()
                    if not task.advance():
                        self._tasks.append(task)  # the others first: a short prompt does not wait for a long one
                elif self._ending and not (self._running or self._waiting):
                    break
        except BaseException as failure:  # a fault of the engine itself: nobody waits for ever
            _log.exception("engine: its thread has ended")
            error = EngineError(f"engine: its thread has ended ({one_line(failure)})")
            error.__cause__ = failure
        finally:
            self._shut(error)

    def _shut(self, error: BaseException) -> None:
        with self._lock:
            self._closing = True
        while True:
            try:
                self._inbox.get_nowait()()
            except queue.Empty:
                break
        closed = self._ending is not None
        for request in [*self._running.values(), *self._waiting]:
            request.outbox.put(self._last(request, "cancelled") if closed else error)
        self._running.clear()
        self._waiting.clear()
        for task in self._tasks:
            task.abandon(error)
        self._tasks.clear()
        self._batch.close()
        with self._lock:
            self._in_queue = 0
            self._stats = replace(self._stats, running=0, kv_tokens=0)

    def _end(self, how: str) -> None:
        self._ending = how if self._ending != "drop" else "drop"

    def _read_inbox(self) -> None:
        """Do what others have asked for; wait for it where there is nothing else to do."""
        if not (self._running or self._waiting or self._tasks or self._ending):
            self._inbox.get()()
        while True:
            try:
                self._inbox.get_nowait()()
            except queue.Empty:
                return

    def _sweep(self) -> None:
        """Let requests go that were cancelled, abandoned, or are past their deadline."""
        now = time.monotonic()  # each is asked once: another thread may cancel it meanwhile
        for request, reason in [(one, one.over(now)) for one in self._running.values()]:
            if reason is not None:
                self._batch.remove(request.name)
                del self._running[request.name]
                self._finish(request, reason)
        asked = [(one, one.over(now)) for one in self._waiting]
        over = [(one, reason) for one, reason in asked if reason is not None]
        if over:
            self._waiting = deque(one for one, reason in asked if reason is None)
            self._dequeued(len(over))
            for request, reason in over:
                self._finish(request, reason)

    def _dequeued(self, number: int) -> None:
        with self._lock:
            self._in_queue -= number

    def _admit(self) -> None:
        """Let the requests that have waited longest join the batch."""
        while self._waiting and len(self._running) < self.max_batch:
            request = self._waiting.popleft()
            self._dequeued(1)
            request.began = time.monotonic()
            request.text = TextStream(self.lm.tokenizer, request.sampling.stop)
            try:
                self._batch.add(request.name, request.ids, request.adapter, request.sampling, self._ends)
            except Exception as error:  # an adapter that does not fit the model is this request's fault alone
                self._finish(request, error)
                continue
            self._running[request.name] = request
            self._count(prompt_tokens=len(request.ids))

    def _step(self) -> None:
        began = time.perf_counter()
        try:
            tokens = self._batch.step()
        except Exception as error:  # out of memory, a host that was closed: these requests fail, the engine goes on
            _log.exception("engine: a step failed")
            failed = list(self._running.values())
            self._running.clear()
            self._batch.clear()
            for request in failed:
                ended = EngineError(f"engine: a step failed ({one_line(error)})")
                ended.__cause__ = error
                self._finish(request, ended)
            return
        for token in tokens:
            self._deliver(self._running[token.request_id], token)
        with self._lock:
            self._stats = replace(
                self._stats,
                running=len(self._running),
                steps=self._stats.steps + 1,
                step_seconds=self._stats.step_seconds + time.perf_counter() - began,
                generated_tokens=self._stats.generated_tokens + len(tokens),
                reused_tokens=self._batch.reused_tokens,
                slot_bytes=self._batch.slot_bytes,
                kv_tokens=self._batch.kv_tokens,
            )

    def _deliver(self, request: _Request, token: Token) -> None:
        """Give out one token; a stop text ends the request here and now."""
        text = request.text
        assert text is not None
        ready = "" if token.ended == "stop" else text.add(token.chosen.token_id)
        reason: FinishReason | None = None
        if text.stopped:
            reason = "stop"
            if token.ended is None:
                self._batch.remove(request.name)
        elif token.ended is not None:
            ready += text.finish()
            reason = "stop" if token.ended == "stop" or text.stopped else "length"
        logprobs = None if request.sampling.logprobs is None else (self._logprob(token),)
        piece = Piece(ready, (token.chosen.token_id,), logprobs, reason)
        if reason is None:
            request.outbox.put(piece)
        else:
            del self._running[request.name]
            self._finish(request, piece)

    def _logprob(self, token: Token) -> TokenLogprob:
        chosen = token.chosen
        decode = self.lm.tokenizer.decode
        top = tuple((i, str(decode([i])), value) for i, value in chosen.top)
        return TokenLogprob(chosen.token_id, str(decode([chosen.token_id])), float(chosen.logprob or 0.0), top)

    def _last(self, request: _Request, reason: FinishReason) -> Piece:
        text = "" if request.text is None else request.text.finish()
        return Piece(text, (), None if request.sampling.logprobs is None else (), reason)

    def _finish(self, request: _Request, how: Piece | FinishReason | Exception) -> None:
        """Give out the last piece, and count."""
        piece = self._last(request, how) if isinstance(how, str) else how
        reason = piece.finish_reason if isinstance(piece, Piece) else "failed"
        kinds = {"cancelled": {"cancelled": 1}, "deadline": {"expired": 1}, "failed": {"failed": 1}}
        self._count(finished=1, **kinds.get(reason or "", {}))
        if request.began and reason in ("stop", "length"):
            spent = time.monotonic() - request.began
            with self._lock:
                self._request_seconds += _SMOOTHING * (spent - self._request_seconds)
        with self._lock:
            self._stats = replace(self._stats, running=len(self._running), kv_tokens=self._batch.kv_tokens)
        request.outbox.put(piece)


def _look() -> None:
    """Wake the engine's thread, which then looks at all requests."""


def _pass_on(done: Future[T], to: Future[T]) -> None:
    error = done.exception()
    if error is not None:
        to.set_exception(error)
    else:
        to.set_result(done.result())
