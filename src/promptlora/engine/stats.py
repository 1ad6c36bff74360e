"""``EngineStats``: what an engine does and has done, and the counters behind it.

It knows numbers; nothing of requests or models.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace


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


class Counters:
    """Statistics that any thread may read and change.

    Args:
        start: The first values.
    """

    def __init__(self, start: EngineStats) -> None:
        self._stats, self._lock = start, threading.Lock()

    def add(self, **more: int | float) -> None:
        """Increase some of them."""
        with self._lock:
            self._stats = replace(self._stats, **{name: getattr(self._stats, name) + n for name, n in more.items()})

    def set(self, **values: int | float) -> None:
        """Replace some of them."""
        with self._lock:
            self._stats = replace(self._stats, **values)  # type: ignore[arg-type]  # of the types that they have

    @property
    def now(self) -> EngineStats:
        """All of them."""
        return self._stats
