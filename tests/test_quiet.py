"""Silence is for our own calls: other threads and later calls hear the libraries as before."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

from transformers.utils import logging as transformers_logging

from promptlora.quiet import quiet

LOGGER = logging.getLogger("transformers.some.module")


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_only_the_thread_that_is_inside_is_silent(monkeypatch):
    root, heard = logging.getLogger("transformers"), Heard()
    level = root.level
    root.setLevel(logging.WARNING)  # whatever other tests of this process have left
    root.addHandler(heard)
    before = (root.level, transformers_logging.is_progress_bar_enabled(), [list(h.filters) for h in root.handlers])
    try:
        with quiet():
            LOGGER.warning("inside")
            with quiet(bars=True):
                LOGGER.warning("deeper")
            LOGGER.warning("still inside")
            LOGGER.error("an error")
            other = threading.Thread(target=LOGGER.warning, args=("of another thread",))
            other.start()
            other.join()
            assert [*transformers_logging.tqdm([1, 2])] == [1, 2]
            assert transformers_logging.tqdm([1]).disable
            assert root.level == before[0]
        LOGGER.warning("after")
    finally:
        root.removeHandler(heard)
        root.setLevel(level)
    assert heard.messages == ["an error", "of another thread", "after"]
    assert transformers_logging._tqdm_hook is None


def test_threads_that_overlap_leave_nothing_behind():
    started, done = threading.Event(), threading.Event()

    def long() -> None:
        with quiet():
            started.set()
            done.wait(10)

    thread = threading.Thread(target=long)
    thread.start()
    started.wait(10)
    with quiet():
        pass
    assert transformers_logging._tqdm_hook is not None  # the other thread is inside still
    done.set()
    thread.join()
    assert transformers_logging._tqdm_hook is None
    assert not [
        f for name in ("transformers", "huggingface_hub") for h in logging.getLogger(name).handlers for f in h.filters
    ]


def test_the_package_has_a_logger_that_is_silent_by_itself():
    code = "import logging, promptlora; logging.getLogger('promptlora.x').warning('said')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
