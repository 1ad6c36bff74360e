"""Processes that start in a moment: forked from a server that has imported PyTorch and transformers once.

A fresh interpreter spends five seconds of processor time on these imports. A forked process is a process of its own all the
same: its streams, signals and exit code are real. What an interpreter does at its start and end is for the tests that run
the installed command.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["promptlora.train.trainer"]
)  # the heavy modules; no console, which reads the environment


class Forked:
    """A call in a process of its own, with the part of ``subprocess.Popen`` that the tests use.

    The process exits with the value that ``call(*arguments)`` returns; None is 0. An exception ends it as it ends an
    interpreter.

    Args:
        call: A function of a module.
        arguments: What it is called with; it must be possible to pickle them.
        stdin: Text that the process can read.
        environment: Variables beside those of this process.
        folder: Working folder; this process's own without it.
    """

    def __init__(
        self,
        call: Callable[..., int | None],
        *arguments: object,
        stdin: str = "",
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        pipes = [multiprocessing.Pipe(duplex=False) for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
        settings = {**os.environ, **(environment or {})}
        self._process = _SERVER.Process(
            target=_run, args=(theirs, settings, str(folder or Path.cwd()), call, arguments), daemon=True
        )
        self._process.start()
        for end in theirs:
            end.close()
        with os.fdopen(os.dup(ours[0].fileno()), "w", encoding="utf-8") as file:
            file.write(stdin)
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno()), encoding="utf-8") for end in ours[1:])
        for end in ours:
            end.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the streams and wait for the end."""
        self.close()
        self.wait()

    @property
    def returncode(self) -> int | None:
        """The exit code; minus the number of the signal that ended the process; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, or None."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutExpired("a forked process", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; what it wrote to standard output and standard error."""
        told = ["", ""]

        def read(number: int) -> None:
            told[number] = (self.stdout, self.stderr)[number].read()

        readers = [threading.Thread(target=read, args=(number,), daemon=True) for number in (0, 1)]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        self.close()
        return told[0], told[1]

    def close(self) -> None:
        """Close the streams."""
        self.stdout.close()
        self.stderr.close()


def run(
    call: Callable[..., int | None], *arguments: object, timeout: float = 300, **options: object
) -> CompletedProcess[str]:
    """Call a function in a process of its own and wait for its end; the options are those of :class:`Forked`."""
    process = Forked(call, *arguments, **options)  # type: ignore[arg-type]
    try:
        out, error = process.communicate(timeout)
    finally:
        process.kill()
    assert process.returncode is not None
    return CompletedProcess([call.__name__, *map(str, arguments)], process.returncode, out, error)


def tell(value: object) -> None:
    """Write a line to the standard output of this process, at once."""
    sys.stdout.write(f"{value}\n")
    sys.stdout.flush()


def promptlora(*arguments: object) -> int:
    """The command line, to be called in a forked process."""
    from promptlora.cli import main  # there, so that it sees the environment of the process

    return main([str(each) for each in arguments])


def _run(
    streams: Iterable[Connection],
    environment: dict[str, str],
    folder: str,
    call: Callable[..., int | None],
    arguments: tuple[object, ...],
) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    try:
        code = call(*arguments)
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError from None
    sys.exit(code or 0)
