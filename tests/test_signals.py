"""The one handler of Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from promptlora.signals import stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_raises(number):
    before = signal.getsignal(number)
    with stopping() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_at_once_raises_and_remembers():
    with stopping(at_once=True) as asked:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked()


def test_another_thread_has_no_handlers():
    found = []

    def work() -> None:
        with stopping() as asked:
            found.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
