"""The extension's log lines reach the console even where the host configured no logging."""

from __future__ import annotations

import logging

logger = logging.getLogger("async_lowvram")


def make_audible() -> None:
    """Give the logger a handler of its own, once.

    The webui sets up logging only if `--loglevel` is given; without it, Python would drop our INFO lines.
    """
    if logger.handlers or logging.root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("async lowvram: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
