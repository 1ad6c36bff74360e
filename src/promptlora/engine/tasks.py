"""``TaskLoop``: a thread's loop that does pieces of work, one after another, until it is ended.

It knows tasks; nothing of what they do, or of requests.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from promptlora.engine.requests import EngineError
from promptlora.errors import one_line

T = TypeVar("T")
Pieces = Generator[None, None, T]  # yields between two pieces, and returns the result

_log = logging.getLogger(__name__)


class Task(Generic[T]):
    """Something that is done in pieces, and the future of its result.

    Args:
        pieces: The work.
    """

    def __init__(self, pieces: Pieces[T]) -> None:
        self.future: Future[T] = Future()
        self._pieces = pieces
        self._begun = False

    def advance(self) -> bool:
        """Do one piece; whether that was the last one. What the work raises is the future's."""
        if not self._begun:
            if not self.future.set_running_or_notify_cancel():
                return True
            self._begun = True
        try:
            next(self._pieces)
        except StopIteration as done:
            self.future.set_result(done.value)
        except BaseException as error:
            self.future.set_exception(error)
        else:
            return False
        return True

    def abandon(self, error: BaseException) -> None:
        """End the work without a result."""
        self._pieces.close()
        if not self.future.done() and (self._begun or self.future.set_running_or_notify_cancel()):
            self.future.set_exception(error)


def single(work: Callable[[], T]) -> Pieces[T]:
    """A piece of work that is done at once."""
    return work()
    yield  # makes this a generator


class TaskLoop:
    """Does tasks in turns, a piece of each.

    Attributes:
        lock: Held for a moment by whoever reads or changes ``closing`` and ``in_queue``.
        closing: Nothing more is taken.
        in_queue: Requests that wait; always 0 here.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.closing, self.in_queue = False, 0
        # A SimpleQueue may be put to by a finalizer at any moment, in the middle of a call of this class too.
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tasks: deque[Task[Any]] = deque()
        self._ending: str | None = None  # "drain" or "drop" once the thread is to end

    # --- what other threads call ---------------------------------------------------------------------------

    def take(self, task: Task[Any]) -> None:
        """Do some work between others; with the lock held.

        Raises:
            EngineError: The loop is closed.
        """
        self.refuse_if_closing()
        self._inbox.put(lambda: self._tasks.append(task))

    def refuse_if_closing(self) -> None:
        """Refuse what comes after the end; with the lock held.

        Raises:
            EngineError: The loop is closed.
        """
        if self.closing:
            raise EngineError("engine: closed. Expected an open one.")

    def end(self, how: str) -> None:
        """End the loop: ``drain`` after all that is there, ``drop`` now."""
        self._inbox.put(lambda: self._end(how))

    # --- the thread ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """The loop, until :meth:`end`."""
        error: BaseException = EngineError("engine: closed. Expected an open one.")
        try:
            while self._ending != "drop":
                self._read_inbox()
                self._before_a_task()
                if self._tasks:
                    task = self._tasks.popleft()
                    if not task.advance():
                        self._tasks.append(task)  # the others first: a short prompt does not wait for a long one
                elif self._ending and not self._busy():
                    break
        except BaseException as failure:  # a fault of the loop itself: nobody waits for ever
            _log.exception("engine: its thread has ended")
            error = EngineError(f"engine: its thread has ended ({one_line(failure)})")
            error.__cause__ = failure
        finally:
            self._shut(error)

    def _busy(self) -> bool:
        """Whether there is more to do than tasks."""
        return False

    def _before_a_task(self) -> None:
        """What is done between two pieces of work."""

    def _shut(self, error: BaseException) -> None:
        """Take nothing more, and end what is there."""
        with self.lock:
            self.closing = True
        while True:
            try:
                self._inbox.get_nowait()()
            except queue.Empty:
                break
        self._end_requests(error)
        for task in self._tasks:
            task.abandon(error)
        self._tasks.clear()

    def _end_requests(self, error: BaseException) -> None:
        """End what else is there."""

    def _end(self, how: str) -> None:
        self._ending = how if self._ending != "drop" else "drop"

    def _read_inbox(self) -> None:
        """Do what others have asked for; wait for it where there is nothing else to do."""
        if not (self._tasks or self._ending or self._busy()):
            self._inbox.get()()
        while True:
            try:
                self._inbox.get_nowait()()
            except queue.Empty:
                return
