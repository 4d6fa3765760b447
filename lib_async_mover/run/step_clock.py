"""The step clock: how long steps take, from the start of a forward to the start of the next."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from statistics import median

from lib_async_mover.device.backend import Backend, Mark

STARTS_KEPT = 17


class StepClock:
    """Never spans two runs of forwards: what passes between two images is no step."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._starts: deque[Mark] = deque(maxlen=STARTS_KEPT)
        self._ended: Mark = None
        self._gaps: deque[tuple[Mark, Mark]] = deque(maxlen=3)
        self._last_ms: float | None = None  # of the run before

    def forward_started(self) -> None:
        """To be called with every forward."""
        self._starts.append(self._backend.mark_compute())
        if self._ended is not None:
            self._gaps.append((self._ended, self._starts[-1]))
            self._ended = None

    @property
    def first(self) -> bool:
        """Whether the forward that started last is the first of its run."""
        return len(self._starts) == 1

    def forward_ended(self, end: Mark) -> None:
        """To be called now and then."""
        self._ended = end

    def end_run(self) -> None:
        """Forwards no longer follow one another: what comes is another image, or a new plan."""
        self._last_ms = self.step_ms()
        self._starts.clear()
        self._ended = None

    def step_ms(self) -> float | None:
        """The median of the last steps that the device passed, or of those of the run before; None if there are none.

        From any thread.
        """
        passed = [mark for mark in list(self._starts) if self._backend.passed(mark)]
        steps = [self._backend.elapsed_ms(start, after) for start, after in pairwise(passed)]
        return median(steps) if steps else self._last_ms

    def gap_ms(self) -> float:
        """From the end of a forward to the start of the next, the median of the last that were timed; 0 if none were.

        A pause now and then (a preview, a picture saved) is no rhythm.
        """
        passed = [gap for gap in self._gaps if self._backend.passed(gap[1])]
        return max(0.0, median([self._backend.elapsed_ms(*gap) for gap in passed] or [0.0]))
