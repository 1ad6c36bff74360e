"""The project's only handler of Ctrl-C and SIGTERM, for work that should stop cleanly.

It knows signals; it knows nothing of the work.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stopping(*, at_once: bool = False) -> Iterator[Callable[[], bool]]:
    """Record Ctrl-C and SIGTERM inside ``with``; the previous handlers are restored afterwards.

    Outside the main thread, Python does not allow signal handlers, so no signal is recorded.

    Args:
        at_once: Whether to raise KeyboardInterrupt at the first signal. Otherwise the first signal is only recorded, so
            that the caller can finish its step, and the second one raises.

    Yields:
        A function that returns whether a signal was received. Call it with ``at_once`` too, because Python drops an
        exception that a signal handler raises inside a finaliser or a library's callback.
    """
    asked = False

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        again, asked = asked, True
        if again or at_once:
            raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread
        before = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
