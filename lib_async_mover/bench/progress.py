"""What is being measured: a progress bar on a terminal where tqdm is installed, a log line everywhere else."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger("async_lowvram")


@contextmanager
def progress(text: str, count: int, unit: str = "fwd") -> Iterator[Callable[[int], object]]:
    """Say that `text` is measured now, in about so many forwards, or what `unit` names. Yields what counts those done.

    Not to be called between timed steps: drawing takes time.
    """
    try:
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm
    except ImportError:
        tqdm = None
    if tqdm is None or not sys.stderr.isatty():
        logger.info("%s ...", text)
        yield lambda done: None
        return
    with logging_redirect_tqdm(), tqdm(total=count, desc=text, unit=unit, leave=False, dynamic_ncols=True) as bar:
        yield bar.update
