"""A thread that runs jobs in order, and ends when its owner is dropped."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable

Job = Callable[[], None]


class Worker:
    """Starts with its first job. A job must not raise."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    @property
    def pending(self) -> int:
        """Jobs that have not ended."""
        return self._jobs.unfinished_tasks

    def submit(self, job: Job) -> None:
        """Runs ``job`` after all earlier ones."""
        if self._thread is None:
            # The thread knows the queue alone: were it to know more, nobody could drop the weights it copies.
            self._thread = threading.Thread(target=_run, args=(self._jobs,), name=self._name, daemon=True)
            self._thread.start()
            weakref.finalize(self, self._jobs.put, None).atexit = False
        self._jobs.put(job)

    def drain(self) -> None:
        """Blocks until all jobs have ended."""
        self._jobs.join()

    def close(self) -> None:
        """Blocks until all jobs and the thread have ended. A later job starts another."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            thread.join()


def _run(jobs: queue.Queue[Job | None]) -> None:
    while True:
        job = jobs.get()
        try:
            if job is None:
                return
            job()
        finally:
            job = None
            jobs.task_done()
