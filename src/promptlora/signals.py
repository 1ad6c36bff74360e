"""Ctrl-C and SIGTERM while something runs that should end in order: the one handler of the project.

It knows signals; nothing of what runs.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stopping(*, at_once: bool = False) -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C and SIGTERM inside; the handlers that were there come back afterwards.

    Outside of the main thread Python allows no handlers, and nothing is noted.

    Args:
        at_once: Raise KeyboardInterrupt at the first signal. Otherwise the first is only noted, so that the caller
            finishes its step, and the second raises.

    Yields:
        Whether a signal came. With ``at_once`` ask it too: Python drops an exception that a signal raises inside a
        finaliser or a library's callback.
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
