"""Writing files and folders whole or not at all: a temporary name beside the target, then a rename.

It knows nothing of what is written.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptlora.errors import OutputError


def _reason(path: Path, error: BaseException) -> OutputError:
    text = getattr(error, "strerror", None) or str(error)
    return OutputError(f"{path}: cannot be written ({text}); free some space or choose another path")


def _is_disk_error(error: BaseException) -> bool:
    return isinstance(error, OSError) or "No space left" in str(error) or "I/O error" in str(error)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it replaces ``path`` in one step, on an error it is removed.

    Raises:
        OutputError: The file cannot be written (no space, no permission).
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
            temporary = Path(handle.name)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if _is_disk_error(error):
            raise _reason(path, error) from error
        raise


@contextmanager
def creating_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; on success it becomes ``path`` in one step, on an error it is removed.

    Args:
        path: The folder to create.
        overwrite: Replace a folder that exists already.

    Raises:
        OutputError: The folder exists (without ``overwrite``) or cannot be written.
    """
    if path.exists() and not overwrite and not (path.is_dir() and not any(path.iterdir())):
        raise OutputError(f"{path}: exists already; expected a new folder; choose another path or pass --overwrite")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        yield temporary
        temporary.chmod(0o755)
        if path.is_dir():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.replace(old / "old")
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if _is_disk_error(error):
            raise _reason(path, error) from error
        raise
