"""Controls who may run a model: owners, and the lock that owners wait for.

The hooks of a model read slots that belong to the model, not to a caller. If two callers ran the model at the same
time, they would get each other's adapters. An :class:`Owner` identifies a caller, and a :class:`Turn` admits one owner
at a time. This file knows threads and asyncio tasks; it knows nothing of modules or LoRA.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from promptlora.errors import LoRAError

_LOOK_AGAIN = 1.0  # seconds after which a waiting thread checks whether the holder's thread has ended


def _current_task() -> asyncio.Task[Any] | None:
    return None if asyncio._get_running_loop() is None else asyncio.current_task()


@dataclass(frozen=True, eq=False)
class Owner:
    """A thread and, inside an event loop, the asyncio task that runs in it.

    Attributes:
        thread: The thread.
        task: The task; None outside a task.
    """

    thread: threading.Thread
    task: asyncio.Task[Any] | None

    @classmethod
    def current(cls) -> Owner:
        """The owner that identifies the caller."""
        return cls(threading.current_thread(), _current_task())

    def covers(self, other: Owner) -> bool:
        """Whether ``other`` acts within this owner: in the same thread and, if there is one, the same task."""
        return self.thread is other.thread and (self.task is None or self.task is other.task)

    def is_caller(self) -> bool:
        """Whether the caller is covered by this owner."""
        return self.thread is threading.current_thread() and (self.task is None or self.task is _current_task())

    @property
    def alive(self) -> bool:
        """Whether the owner can still act: its thread is running and its task is not done."""
        return self.thread.is_alive() and not (self.task is not None and self.task.done())

    def __str__(self) -> str:
        task = "" if self.task is None else f", task {self.task.get_name()!r}"
        return f"thread {self.thread.name!r}{task}"


class Turn:
    """A fair, reentrant lock: owners acquire it in the order of their requests.

    Unlike ``threading.RLock``, it is fair, and it is released when the holder's thread ends. It can also be acquired on
    behalf of another owner, because autograd recomputes a layer in a separate thread while the caller of ``backward``
    waits.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())  # reentrant: a finalizer may run inside
        self._queue: deque[object] = deque()
        self._holder: Owner | None = None
        self._tickets: list[object] = []  # one per acquisition by the holder

    @property
    def holder(self) -> Owner | None:
        """The owner that holds the lock; None if it is free."""
        return self._holder if self._tickets else None

    @contextmanager
    def held(self, owner: Owner | None = None) -> Iterator[None]:
        """Wait for the lock, and hold it inside ``with``.

        Args:
            owner: The owner that acquires the lock; by default the caller.

        Raises:
            LoRAError: Another task of this thread holds the lock, so the wait would never end.
        """
        ticket = self._take(owner or Owner.current())
        try:
            yield
        finally:
            with self._changed:
                if ticket in self._tickets:  # it is missing if another owner took over after this thread ended
                    self._tickets.remove(ticket)
                    self._changed.notify_all()

    def _free(self) -> bool:
        return not self._tickets or self._holder is None or not self._holder.alive

    def _take(self, owner: Owner) -> object:
        ticket = object()
        with self._changed:
            if not self._free() and self._holder is not None:
                if self._holder.covers(owner):
                    self._tickets.append(ticket)
                    return ticket
                if self._holder.thread is threading.current_thread():
                    raise LoRAError(
                        f"the model is in use by {self._holder}, and {Owner.current()} asked for it in the same thread: waiting "
                        "would never end. Expected one task at a time. Fix: leave that use before the task awaits, or "
                        "run the call in another thread"
                    )
            self._queue.append(ticket)
            try:
                while self._queue[0] is not ticket or not self._free():
                    self._changed.wait(_LOOK_AGAIN)
                self._holder, self._tickets = owner, [ticket]
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        return ticket


# Keyed by model, so that all injectors and hosts of one model share its lock. The weak keys keep no model alive.
_TURNS: WeakKeyDictionary[nn.Module, Turn] = WeakKeyDictionary()
_TURNS_LOCK = threading.Lock()


def turn_of(model: nn.Module) -> Turn:
    """The lock of a model; every call returns the same object."""
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps the model
    with _TURNS_LOCK:
        return _TURNS.setdefault(model, Turn())
