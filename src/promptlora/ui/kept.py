"""A bounded cache that all visitors share. It knows nothing of the values that it holds."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Kept(Generic[_T]):
    """Values by key; the least recently used value is dropped first. Thread-safe."""

    def __init__(self, capacity: int, dropped: Callable[[str, _T], None] | None = None) -> None:
        self.capacity, self._dropped = capacity, dropped
        self._lock = Lock()
        self._values: OrderedDict[str, _T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> _T | None:
        """Return the value and mark it as most recently used; None if it is not in the cache."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: str, value: _T) -> None:
        """Add a value; the least recently used one is dropped if the capacity is exceeded."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            over = len(self._values) - self.capacity
            gone = [self._values.popitem(last=False) for _ in range(over)]
        if self._dropped:
            for key, value in gone:
                self._dropped(key, value)


def digest(*parts: object) -> str:
    """A short hash of the given values, as a key."""
    return hashlib.sha256(repr(parts).encode("utf-8", "backslashreplace")).hexdigest()[:16]
