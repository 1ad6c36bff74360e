"""Values kept by key for all visitors, up to a number of them. It knows nothing of what is kept."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Kept(Generic[_T]):
    """Values by key; the least recently used one is dropped first. Any thread may call it."""

    def __init__(self, capacity: int, dropped: Callable[[str, _T], None] | None = None) -> None:
        self.capacity, self._dropped = capacity, dropped
        self._lock = Lock()
        self._values: OrderedDict[str, _T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> _T | None:
        """The value, which then is the most recently used one; None if it is not kept."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: str, value: _T) -> None:
        """Keep a value; the least recently used one is dropped if there are too many."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            over = len(self._values) - self.capacity
            gone = [self._values.popitem(last=False) for _ in range(over)]
        if self._dropped:
            for key, value in gone:
                self._dropped(key, value)


def digest(*parts: object) -> str:
    """A short key of some values."""
    return hashlib.sha256(repr(parts).encode("utf-8", "backslashreplace")).hexdigest()[:16]
