"""Writing files and folders whole or not at all: a temporary name beside the target, then a rename.

It knows nothing of what is written.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from promptlora.errors import OutputError


def _reason(path: Path, error: BaseException) -> OutputError:
    text = getattr(error, "strerror", None) or str(error)
    return OutputError(f"{path}: cannot be written ({text}); free some space or choose another path")


def _is_disk_error(error: BaseException) -> bool:
    return isinstance(error, OSError) or "No space left" in str(error) or "I/O error" in str(error)


def _beside(path: Path) -> Path:
    """A name for what becomes ``path``, known before anything has it: Ctrl-C may come at any moment after."""
    return path.parent / f".{path.name}.{secrets.token_hex(4)}"


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it replaces ``path`` in one step, on an error it is removed.

    Raises:
        OutputError: The file cannot be written (no space, no permission).
    """
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(mode=0o600, exist_ok=False)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # it was never made
            temporary.unlink()
        if _is_disk_error(error):
            raise _reason(path, error) from error
        raise


def _swap(temporary: Path, path: Path) -> None:
    """Put a folder in the place of another, which is put back when that fails, and removed when it does not."""
    beside = _beside(path)
    old = beside / "old"
    try:
        beside.mkdir(mode=0o700)
        path.replace(old)
        temporary.replace(path)
    except BaseException:
        if not os.path.lexists(path):
            old.replace(path)
        raise
    finally:
        if os.path.lexists(path):  # else the old one is all there is
            shutil.rmtree(beside, ignore_errors=True)


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.is_dir():
        if path.exists():
            raise OutputError(f"{path}: is a file; expected a folder to create; choose another path")
        return
    if not any(path.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{path}: exists already; expected a new folder; choose another path or pass --overwrite")
    for lived_in in (Path.cwd(), Path(os.environ.get("HOME") or Path.cwd())):
        if lived_in.resolve().is_relative_to(path.resolve()):
            raise OutputError(f"{path}: holds {lived_in}, so it is not replaced; choose another path")


@contextmanager
def creating_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; on success it becomes ``path``, on an error it is removed.

    It becomes ``path`` in one step; where it replaces a folder, in two, and the old one is put back when the
    second fails. Without ``overwrite`` a folder that another process put there meanwhile is left as it is.

    Args:
        path: The folder to create.
        overwrite: Replace a folder that exists already.

    Raises:
        OutputError: The folder exists (without ``overwrite``), is a file, holds the working or home folder, or
            cannot be written.
    """
    temporary = _beside(path)
    try:
        _check_target(path, overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(mode=0o700)
        yield temporary
        for inside in temporary.rglob("*"):  # safetensors writes files that only their owner can read
            inside.chmod(0o755 if inside.is_dir() else 0o644)
        temporary.chmod(0o755)
        if overwrite and path.is_dir():
            _swap(temporary, path)
        else:
            temporary.replace(path)  # onto nothing or an empty folder; refused onto one that holds something
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if _is_disk_error(error):
            raise _reason(path, error) from error
        raise
