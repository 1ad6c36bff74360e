"""Which API key may use which adapter.

The id of an adapter is a hash of its content, so two keys that send one prompt share one adapter. Each key sees only what
it has sent itself: it lists, uses and deletes an adapter by its id only while it owns it. An adapter is deleted with its
last owner. It knows ids and names of owners; nothing of adapters or HTTP.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from promptlora.reading import reason_of

log = logging.getLogger("promptlora.server")


class Owners:
    """A table of owners and adapter ids, kept as one empty file for each pair where a folder is given.

    Several servers may share the folder: a file is made and removed in one step.

    Args:
        folder: Where the files are; None keeps the table in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._owned: dict[str, dict[str, float]] = {}  # with a folder: what could not be written there
        self._lock = threading.Lock()

    def grant(self, owner: str, key: str) -> bool:
        """Make an owner; whether it was none before. Where the folder cannot be written, it is one until the server ends."""
        with self._lock:
            if self._owns(owner, key):
                return False
            try:
                self._write(owner, key)
            except OSError as error:
                log.warning("%s: cannot be written (%s)", self._file(owner, key), reason_of(error))
                self._owned.setdefault(owner, {})[key] = time.time()
            return True

    def owns(self, owner: str, key: str) -> bool:
        """Whether an owner may use an adapter."""
        with self._lock:
            return self._owns(owner, key)

    def since(self, owner: str, key: str) -> float | None:
        """When an owner became one, in seconds since 1970; another may have been before."""
        with self._lock:
            if key in self._owned.get(owner, ()):
                return self._owned[owner][key]
        with suppress(OSError):
            if self.folder is not None:
                return self._file(owner, key).stat().st_mtime
        return None

    def of(self, owner: str) -> list[str]:
        """The ids of an owner's adapters, sorted."""
        with self._lock:
            place = None if self.folder is None else self.folder / owner
            written = [] if place is None or not place.is_dir() else [entry.name for entry in os.scandir(place)]
            return sorted({*written, *self._owned.get(owner, ())})

    def revoke(self, owner: str, key: str) -> bool:
        """Take an adapter from an owner; whether nobody owns it any more."""
        with self._lock:
            self._owned.get(owner, {}).pop(key, None)
            if self.folder is not None:
                self._file(owner, key).unlink(missing_ok=True)
            owners = (
                () if self.folder is None or not self.folder.is_dir() else [each.name for each in self.folder.iterdir()]
            )
            return not any(self._owns(each, key) for each in {*owners, *self._owned})

    def _owns(self, owner: str, key: str) -> bool:
        return key in self._owned.get(owner, ()) or (self.folder is not None and self._file(owner, key).exists())

    def _file(self, owner: str, key: str) -> Path:
        assert self.folder is not None
        return self.folder / owner / key

    def _write(self, owner: str, key: str) -> None:
        if self.folder is None:
            self._owned.setdefault(owner, {})[key] = time.time()
            return
        file = self._file(owner, key)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600)
