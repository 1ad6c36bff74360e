"""Writes files and folders atomically: under a temporary name next to the target, followed by a rename.

It knows nothing of what is written.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from promptlora.errors import OutputError

_LONGEST_NAME = 255  # bytes, on common file systems


def _reason(path: Path, error: BaseException) -> OutputError:
    text = getattr(error, "strerror", None) or str(error)
    return OutputError(f"{path}: cannot be written ({text}); free some space or choose another path")


def _is_disk_error(error: BaseException) -> bool:
    return isinstance(error, OSError) or "No space left" in str(error) or "I/O error" in str(error)


def _beside(path: Path) -> Path:
    """A temporary name next to ``path``, chosen before anything is created, so that it can be removed after Ctrl-C.

    It is truncated if it would exceed the file system's limit.
    """
    name = os.fsdecode(os.fsencode(path.name)[:200])
    return path.parent / f".{name}.{secrets.token_hex(4)}"


def _make_parents(path: Path) -> list[Path]:
    """Create the parent folders of a path; returns those that did not exist, the deepest first."""
    made = []
    for parent in path.parents:
        if parent.exists():
            break
        made.append(parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    return made


def _remove_empty(folders: Iterable[Path]) -> None:
    with suppress(OSError):  # another process created something there
        for folder in folders:
            folder.rmdir()


def check_output(path: Path, *, overwrite: bool = False, folder: bool = True, reuse: bool = False) -> None:
    """Refuse an output path that cannot be written, before any work starts; nothing is created.

    Args:
        path: The folder or file to be written.
        overwrite: Whether an existing folder or file may be replaced.
        folder: Whether the path is a folder.
        reuse: Whether an existing folder with contents may be continued.

    Raises:
        OutputError: The path has no name or too long a name, already exists, is a file where a folder is expected or
            the reverse, is below a file, or cannot be written.
    """
    if "\0" in str(path):
        raise OutputError(f"output {str(path)[:80]!r}: a NUL byte. Expected a name without.")
    if path.name in ("", ".."):
        raise OutputError(
            f"output {str(path)!r}: no name of its own, so it is not replaced. Expected the name of a "
            f"{'folder' if folder else 'file'} to create."
        )
    try:
        if folder and not reuse:
            _check_target(path, overwrite)
        elif path.is_dir() != folder and path.exists():
            what = "a folder" if path.is_dir() else "a file"
            raise OutputError(f"{path}: is {what}; expected a {'folder' if folder else 'file'}; choose another path")
        elif not folder and path.exists() and not overwrite:
            raise OutputError(
                f"{path}: exists already; expected a new file; choose another path or pass overwrite=True"
            )
        if path.is_symlink() and not path.exists():
            raise OutputError(f"{path}: is a broken link. Expected a new name. Fix: remove it.")
        if any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        above = path if path.is_dir() and reuse else path.parent
        while not above.exists():
            above = above.parent
        if not above.is_dir():
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(above, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:
        if isinstance(error, OutputError):
            raise
        raise _reason(path, error) from error


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines to a file, all or none: if the disk is full, the file is truncated to its previous length.

    Raises:
        OutputError: The lines cannot be written.
    """
    data = "".join(f"{line}\n" for line in lines).encode()
    try:
        with path.open("ab", buffering=0) as handle:
            before = handle.seek(0, os.SEEK_END)
            try:
                written = 0
                while written < len(data):
                    written += handle.write(data[written:])
            except BaseException:
                with suppress(OSError):
                    handle.truncate(before)
                raise
    except OSError as error:
        raise _reason(path, error) from error


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it atomically replaces ``path``, on an error it is removed.

    Raises:
        OutputError: The file cannot be written (no space, no permission).
    """
    temporary, made = _beside(path), []
    try:
        check_output(path, overwrite=True, folder=False)
        made = _make_parents(path)
        temporary.touch(mode=0o600, exist_ok=False)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError, ValueError):  # it was never created
            temporary.unlink()
        _remove_empty(made)
        if _is_disk_error(error):
            raise _reason(path, error) from error
        raise


def _swap(temporary: Path, path: Path) -> None:
    """Replace a folder by another one; the old folder is restored on failure and removed on success."""
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
        if os.path.lexists(path):  # otherwise the old folder is the only copy and must stay
            shutil.rmtree(beside, ignore_errors=True)


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.is_dir():
        if path.exists():
            raise OutputError(f"{path}: is a file; expected a folder to create; choose another path")
        return
    if not any(path.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{path}: exists already; expected a new folder; choose another path or pass overwrite=True")
    for lived_in in (Path.cwd(), Path(os.environ.get("HOME") or Path.cwd())):
        if lived_in.resolve().is_relative_to(path.resolve()):
            raise OutputError(f"{path}: holds {lived_in}, so it is not replaced; choose another path")


@contextmanager
def creating_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; on success it becomes ``path``, on an error it is removed.

    A new folder is renamed to ``path`` in one step. Replacing an existing folder takes two steps; if the second fails,
    the old folder is restored. Without ``overwrite``, a folder that another process created in the meantime is left
    unchanged.

    Args:
        path: The folder to create.
        overwrite: Whether to replace an existing folder.

    Raises:
        OutputError: The folder exists (without ``overwrite``), is a file, contains the working or home folder, or
            cannot be written.
    """
    temporary, made = _beside(path), []
    try:
        check_output(path, overwrite=overwrite)
        made = _make_parents(path)
        temporary.mkdir(mode=0o700)
        yield temporary
        for inside in temporary.rglob("*"):  # safetensors creates files that only the owner can read
            inside.chmod(0o755 if inside.is_dir() else 0o644)
        temporary.chmod(0o755)
        if overwrite and path.is_dir():
            _swap(temporary, path)
        else:
            temporary.replace(path)  # fails if path is a folder with contents
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)
        if _is_disk_error(error):
            raise _reason(path, error) from error
        raise
