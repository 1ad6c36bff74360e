"""Work that takes longer than a request: one at a time, in a thread, with progress, and it can be cancelled.

It knows nothing of what the work is.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from promptlora.server.errors import ApiError, told, too_many

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
_ENDED = ("succeeded", "failed", "cancelled")
_REMEMBERED = 1024


class _CancelledError(Exception):
    """Ends work that was asked to stop."""


@dataclass
class Job:
    """One piece of work.

    Attributes:
        id: A random name.
        owner: Who started it, and alone may see it.
        created: When, in seconds since 1970.
        status: What it does.
        step: Steps that are done.
        steps: Steps in all, as far as known.
        result: What the work returned.
        note: What the work says of its result; empty where there is nothing to say.
        error: Why it failed.
        ended: When it ended.
    """

    id: str
    owner: str
    created: float
    status: Status = "queued"
    step: int = 0
    steps: int | None = None
    result: str | None = None
    note: str = ""
    error: ApiError | None = None
    ended: float | None = None
    asked_to_stop: threading.Event = field(default_factory=threading.Event, repr=False)


class Progress:
    """What work says of itself, and asks.

    Args:
        job: Whose work it is.
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    def report(self, step: int, steps: int) -> None:
        """Say how many steps are done, and how many there are."""
        self._job.step, self._job.steps = step, steps

    def note(self, text: str) -> None:
        """Say something of the result."""
        self._job.note = text

    def asked_to_stop(self) -> bool:
        """Whether the job was cancelled."""
        return self._job.asked_to_stop.is_set()

    def check(self) -> None:
        """End the work here if the job was cancelled."""
        if self.asked_to_stop():
            raise _CancelledError


Work = Callable[[Progress], str]


class Jobs:
    """The jobs of a server; those that ended are remembered for a while.

    Args:
        most: Most jobs that wait or run.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="promptlora-job")

    def start(self, owner: str, work: Work) -> Job:
        """Put work into the queue.

        Args:
            owner: Who starts it.
            work: Called with its progress; returns its result.

        Raises:
            ApiError: As many jobs wait or run as may.
        """
        job = Job(f"job-{secrets.token_hex(12)}", owner, time.time())
        with self._lock:
            active = sum(each.status not in _ENDED for each in self._jobs.values())
            if active >= self.most:
                raise too_many("jobs wait or run", 30)
            self._jobs[job.id] = job
            self._forget()
        self._worker.submit(self._run, job, work)
        return job

    def get(self, owner: str, name: str) -> Job:
        """A job of an owner.

        Raises:
            ApiError: There is none.
        """
        with self._lock:
            job = self._jobs.get(name)
        if job is None or job.owner != owner:
            raise ApiError(404, f"job {name[:80]!r}: not found.", code="job_not_found")
        return job

    def of(self, owner: str) -> list[Job]:
        """The jobs of an owner, the oldest first."""
        with self._lock:
            return [job for job in self._jobs.values() if job.owner == owner]

    def cancel(self, owner: str, name: str) -> Job:
        """Ask a job to stop; one that waits stops at once, one that runs at its next step, one that has ended stays as it is."""
        job = self.get(owner, name)
        job.asked_to_stop.set()
        with self._lock:
            if job.status == "queued":
                self._end(job, "cancelled")
        return job

    def close(self) -> None:
        """Cancel all jobs and wait for the step that runs."""
        with self._lock:
            for job in self._jobs.values():
                job.asked_to_stop.set()
        self._worker.shutdown(cancel_futures=True)

    def _run(self, job: Job, work: Work) -> None:
        with self._lock:
            if job.status != "queued" or job.asked_to_stop.is_set():
                return
            job.status = "running"
        status: Status = "succeeded"
        try:
            job.result = work(Progress(job))
        except _CancelledError:
            status = "cancelled"
        except Exception as error:
            job.error, status = told(error), "failed"
        with self._lock:
            self._end(job, status)

    def _end(self, job: Job, status: Status) -> None:
        job.status, job.ended = status, time.time()

    def _forget(self) -> None:
        """Drop the oldest jobs that have ended, beyond the number that is remembered."""
        ended = [name for name, job in self._jobs.items() if job.status in _ENDED]
        for name in ended[: max(0, len(self._jobs) - _REMEMBERED)]:
            del self._jobs[name]
