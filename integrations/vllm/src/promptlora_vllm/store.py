"""``Store``: PEFT folders by adapter id, shared by all processes of an engine, and by engines on one file system.

vLLM reads a folder again whenever it loads an adapter that it had evicted, and its engine ends where the folder has
gone. So a folder outlives the name: it is removed only when the store is too large and it was not used for a while, and
:mod:`promptlora_vllm.reloading` writes it again where it is missing nevertheless. The store knows files; nothing of vLLM or HTTP.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile("[0-9a-f]{64}")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LARGEST = 1 << 32  # bytes of one file of an adapter
_FORGOTTEN = 3600  # seconds after which a temporary folder belongs to a process that was killed


class StoreError(RuntimeError):
    """A store that cannot be used, or an archive that is no adapter."""


class StoreFullError(StoreError):
    """No space is left for another adapter."""


def is_key(key: str) -> bool:
    """Whether a text has the form of an adapter id, so that it names no other file."""
    return _KEY.fullmatch(key) is not None


def origin_of(folder: Path) -> dict[str, Any]:
    """What the weights of a PEFT folder say of how the adapter came about; empty where they say nothing.

    Raises:
        StoreError: They cannot be read.
    """
    try:
        with (folder / WEIGHTS).open("rb") as file:  # the header of safetensors: its length, then JSON
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        (origin,) = json.loads(header.get("__metadata__", {}).get("promptlora.provenance", "[{}]"))
    except (OSError, ValueError, AttributeError) as error:
        raise StoreError(f"{folder}: its weights cannot be read. Expected a PEFT folder.") from error
    return dict(origin)


class Store:
    """A folder of PEFT folders.

    Args:
        folder: The folder; it is made with access for this user alone.
        most_bytes: Size above which folders that were not used for ``keep`` seconds are removed.
        keep: Seconds for which a folder stays after its last use.

    Raises:
        StoreError: The folder cannot be made, or it belongs to another user.
    """

    def __init__(self, folder: Path, *, most_bytes: int, keep: float = 600.0) -> None:
        self.folder, self.most_bytes, self.keep = folder, most_bytes, keep
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = folder.lstat().st_uid
        except OSError as error:
            raise StoreError(f"{folder}: {error.strerror}. Expected a folder. Fix: set PROMPTLORA_STORE.") from error
        if folder.is_symlink() or owner != os.getuid():  # anybody can make a folder in /dev/shm first
            raise StoreError(
                f"{folder}: belongs to another user. Expected a folder of this one. Fix: set PROMPTLORA_STORE."
            )

    def path(self, key: str) -> Path:
        """Where the folder of an adapter is, or would be.

        Raises:
            StoreError: Not the form of an id.
        """
        if not is_key(key):
            raise StoreError(f"adapter {key[:80]!r}: not an id. Expected 64 hexadecimal digits.")
        return self.folder / key

    def get(self, key: str) -> Path | None:
        """The folder of an adapter, which counts as used now; None where it is missing or incomplete."""
        path = self.path(key)
        if not _complete(path):
            return None
        with suppress(OSError):  # it may be read-only, or has just been removed, which the caller sees when it opens it
            os.utime(path)
        return path if _complete(path) else None

    def put(self, key: str, packed: bytes) -> Path:
        """Unpack an adapter, whole or not at all.

        Args:
            key: Its id.
            packed: A zip of its PEFT folder.

        Returns:
            The folder.

        Raises:
            StoreError: The archive is no PEFT folder, or it cannot be written.
            StoreFullError: No space is left.
        """
        path = self.path(key)
        files = _unpacked(packed)
        self._make_room(sum(map(len, files.values())))
        temporary = None
        try:
            temporary = Path(tempfile.mkdtemp(prefix=f".{key[:8]}-", dir=self.folder))
            for name, content in files.items():
                with (temporary / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            with self._lock(fcntl.LOCK_EX):
                if _complete(path):  # another process was faster
                    os.utime(path)
                    return path
                shutil.rmtree(path, ignore_errors=True)
                temporary.rename(path)
        except OSError as error:
            kind = StoreFullError if error.errno in _NO_ROOM else StoreError
            raise kind(f"{self.folder}: {error.strerror}. Expected room for an adapter.") from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        return path

    @contextmanager
    def reading(self) -> Iterator[None]:
        """No folder is removed by any process meanwhile."""
        with self._lock(fcntl.LOCK_SH):
            yield

    def keys(self) -> list[str]:
        """The ids of all complete folders, sorted."""
        return sorted(path.name for path in self.folder.iterdir() if is_key(path.name) and _complete(path))

    def _make_room(self, wanted: int) -> None:
        """Remove the folders that were not used for the longest time, until as many bytes as wanted are free."""
        with self._lock(fcntl.LOCK_EX):
            now, found = time.time(), []
            for path in self.folder.iterdir():
                with suppress(OSError):
                    used = path.stat().st_mtime
                    if is_key(path.name):
                        found.append((used, sum(file.stat().st_size for file in path.iterdir()), path))
                    elif path.is_dir() and now - used > _FORGOTTEN:
                        shutil.rmtree(path, ignore_errors=True)
            total = sum(size for _, size, _ in found) + wanted
            for used, size, path in sorted(found):
                if total <= self.most_bytes or now - used < self.keep:
                    return
                shutil.rmtree(path, ignore_errors=True)
                total -= size

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        """The lock of the store over all processes; it ends with a process that is killed."""
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, kind)
            yield
        finally:
            os.close(handle)


def _unpacked(packed: bytes) -> dict[str, bytes]:
    """The two files of a PEFT folder that vLLM reads; nothing else of the archive is written anywhere."""
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if not {CONFIG, WEIGHTS} <= sizes.keys() or max(sizes[CONFIG], sizes[WEIGHTS]) > _LARGEST:
                raise StoreError(f"archive with {sorted(sizes)[:4]}: no adapter. Expected {CONFIG} and {WEIGHTS}.")
            files = {name: archive.read(name) for name in (CONFIG, WEIGHTS)}
            json.loads(files[CONFIG])
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise StoreError(f"archive of {len(packed)} bytes: {error}. Expected a zip of a PEFT folder.") from error
    if _declared(io.BytesIO(files[WEIGHTS])) != len(files[WEIGHTS]):
        raise StoreError(f"{WEIGHTS}: not as long as its header says. Expected a whole file.")
    return files


def _complete(path: Path) -> bool:
    """Whether both files are there, and the weights as long as their header says."""
    with suppress(OSError, ValueError):
        weights = path / WEIGHTS
        with weights.open("rb") as file:
            return (path / CONFIG).stat().st_size > 0 and _declared(file) == weights.stat().st_size
    return False


def _declared(file: io.BufferedIOBase | io.BytesIO) -> int:
    """Length of a safetensors file by its header; -1 for no header."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= 100_000_000:
        return -1
    try:
        header = json.loads(file.read(length))
        ends = [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return -1
    return 8 + length + max(ends, default=0)
