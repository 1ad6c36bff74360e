"""Silences transformers and the Hub client in one thread while our own calls load a model.

Their log levels and switches are global, so they are not changed. Instead, a filter on their handlers and a hook on
their progress bars drop only the output of threads that are inside :func:`quiet`.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as transformers_logging

_LIBRARIES = ("transformers", "huggingface_hub")


class _Silence(logging.Filter):
    """A logging filter that drops records below ERROR from silenced threads; installed while there is at least one."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.inside: Counter[int] = Counter()
        self.without_bars: Counter[int] = Counter()
        self._handlers: list[logging.Handler] = []
        self._hook: Any = None

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not self.inside[record.thread or 0]

    def bar(self, factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Replaces the progress bar factory of transformers."""
        if self.without_bars[threading.get_ident()]:
            kwargs = {**kwargs, "disable": True}
        return factory(*args, **kwargs) if self._hook is None else self._hook(factory, args, kwargs)

    def enter(self, thread: int, bars: bool) -> None:
        with self.lock:
            if not self.inside:
                self._handlers = [h for name in _LIBRARIES for h in logging.getLogger(name).handlers]
                for handler in self._handlers:
                    handler.addFilter(self)
                self._hook = transformers_logging.set_tqdm_hook(self.bar)
            self.inside[thread] += 1
            self.without_bars[thread] += not bars

    def leave(self, thread: int, bars: bool) -> None:
        with self.lock:
            self.inside[thread] -= 1
            self.without_bars[thread] -= not bars
            self.inside, self.without_bars = +self.inside, +self.without_bars
            if not self.inside:
                for handler in self._handlers:
                    handler.removeFilter(self)
                transformers_logging.set_tqdm_hook(self._hook)


_silence = _Silence()


@contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """Drop the libraries' messages below ERROR, in this thread only; also progress bars, unless ``bars`` is set."""
    thread = threading.get_ident()
    _silence.enter(thread, bars)
    try:
        yield
    finally:
        _silence.leave(thread, bars)
