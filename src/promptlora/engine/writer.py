"""``AdapterWriter``: writes the adapters of prompts on a thread of its own, many at a time in turns.

It is the engine of a server that generates no text, and the part of ``Engine`` that others need for adapters. It knows
prompts and adapters; nothing of requests or batches.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Self, TypeVar

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.engine.cache import AdapterCache
from promptlora.engine.requests import EngineError
from promptlora.engine.stats import Counters, EngineStats
from promptlora.engine.storage import AdapterEntry
from promptlora.engine.tasks import Task, TaskLoop, single
from promptlora.engine.writing import write_adapter

T = TypeVar("T")


class AdapterWriter:
    """Writes adapters for any base that ``PromptLoRA.adapt`` runs.

    ``with AdapterWriter(lm) as writer: …`` closes it at the end.

    Args:
        lm: The base and its hypernetwork; other calls to it still get their turn between two pieces of work.
        cache: Where adapters are kept; by default 256 MB of memory and no disk.
        loop: What the thread does; by default nothing but to write adapters.
        counters: What is counted.
    """

    def __init__(
        self,
        lm: PromptLoRA,
        *,
        cache: AdapterCache | None = None,
        loop: TaskLoop | None = None,
        counters: Counters | None = None,
    ) -> None:
        self.lm, self.cache = lm, AdapterCache(lm) if cache is None else cache
        self._counters = Counters(EngineStats()) if counters is None else counters
        self._loop = TaskLoop() if loop is None else loop
        self._writing: dict[str, Task[AdapterEntry]] = {}
        self._thread = threading.Thread(target=self._loop.run, name="promptlora-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close, drain=False)  # no thread runs the model while the interpreter ends

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(drain=kind is None)

    @property
    def stats(self) -> EngineStats:
        """Counters of this moment."""
        kept = {"adapters": len(self.cache), "adapter_bytes": self.cache.nbytes}
        return replace(self._counters.now, waiting=self._loop.in_queue, **kept)

    def between_steps(self, work: Callable[[], T]) -> Future[T]:
        """Run something on the engine's thread between two steps; it should be short, since all answers wait for it.

        Inside, the model is not held: use ``lm`` as anywhere else. A future that is cancelled in time runs nothing.

        Raises:
            EngineError: The engine is closed.
        """
        task = Task(single(work))
        with self._loop.lock:
            self._loop.take(task)
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
        with self._loop.lock:
            task = self._writing.get(key)
            if task is None:
                pieces = write_adapter(
                    self.lm, self.cache, key, prompt, tuple(examples), in_context, self._count_adapter
                )
                task = self._writing[key] = Task(pieces)
                self._loop.take(task)
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
        with self._loop.lock:
            self._loop.closing = True
        self._loop.end("drain" if drain else "drop")
        self._thread.join(timeout if drain else None)
        if self._thread.is_alive():
            self._loop.end("drop")
            self._thread.join()

    def _written(self, key: str) -> None:
        with self._loop.lock:
            self._writing.pop(key, None)

    def _count_adapter(self, what: str) -> None:
        self._counters.add(**{{"hit": "adapters_hit", "written": "adapters_written"}.get(what, "adapters_not_kept"): 1})


def _pass_on(done: Future[T], to: Future[T]) -> None:
    error = done.exception()
    if error is not None:
        to.set_exception(error)
    else:
        to.set_result(done.result())
