"""A progress bar on a terminal where tqdm is installed, log lines everywhere else."""

from __future__ import annotations

import importlib
import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("async_lowvram")


def _tqdm() -> Any:
    """tqdm's class; None where it is not installed, or where a bar would only fill a log file."""
    if not sys.stderr.isatty():
        return None
    try:
        return importlib.import_module("tqdm").tqdm
    except ImportError:
        return None


class LogHandler(logging.StreamHandler):
    """Log lines on stderr, above a progress bar that may be there."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = _tqdm()
        if tqdm is None:
            super().emit(record)
        else:
            tqdm.write(self.format(record), file=self.stream)


class Progress:
    """Counts `phases` of about `forwards` forwards each. A context manager; the bar is gone after it."""

    def __init__(self, phases: int, forwards: int) -> None:
        self._forwards = forwards
        self._done_phases = 0
        self._in_phase = 0
        tqdm = _tqdm()
        self._bar: Any = None
        if tqdm is not None:
            self._bar = tqdm(total=phases * forwards, unit="fwd", leave=False, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, text: str) -> None:
        """Say what is measured from now on."""
        self._in_phase = 0
        if self._bar is not None:
            self._bar.set_description(text)
        else:
            logger.info("%s ...", text)

    def advance(self, forwards: int = 1) -> None:
        """Count forwards of this phase. Never called between timed steps: drawing takes time."""
        self._in_phase = min(self._in_phase + forwards, self._forwards)
        self._draw()

    def end(self) -> None:
        """This phase is over, however many forwards it took."""
        self._done_phases += 1
        self._in_phase = 0
        self._draw()

    def _draw(self) -> None:
        if self._bar is not None:
            self._bar.n = self._done_phases * self._forwards + self._in_phase
            self._bar.refresh()
