"""Runs when the webui installs the extension. Nothing to install: only says so where the extension steps aside."""

from __future__ import annotations

import logging
import os
import sys


def unsupported_host(root: str) -> str | None:
    """Names the host in the folder `root` if this extension steps aside there."""

    def has(*parts: str) -> bool:
        return os.path.exists(os.path.join(root, *parts))

    if has("modules_forge") or has("ldm_patched"):
        return "Forge (or one of its relatives) moves models itself"
    if has("installer.py") and not has("modules", "launch_utils.py"):
        return "SD.Next moves models itself"
    if has("modules", "dml") and not has("modules", "lowvram.py"):
        return "this DirectML fork has no lowvram to replace"
    return None


def host_root() -> str:
    """The webui starts this file with its own folder first in PYTHONPATH."""
    first = os.environ.get("PYTHONPATH", "").split(os.pathsep)[0]
    return first or os.getcwd()


if __name__ == "__main__":
    reason = unsupported_host(host_root())
    if reason is not None:
        logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
        logging.getLogger("async_lowvram").info("async lowvram: steps aside here, %s; nothing is changed", reason)
