"""Page-locked RAM: registering memory in place, a process-wide limit, and giving it back.

Memory is registered (`cudaHostRegister`) rather than allocated page-locked: torch rounds each page-locked allocation
up to a power of two, which costs up to twice the weights in RAM, and a registration of 1 GiB takes a tenth of the time.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
from collections.abc import Callable

import torch

logger = logging.getLogger("async_lowvram")

WINDOWS_SHARE = 0.45  # Windows refuses a process more than about half of RAM
OTHER_SHARE = 0.75  # elsewhere nothing refuses, but a machine without pageable RAM swaps everything else out


def total_ram_bytes() -> int:
    """Physical RAM of this machine, in bytes; 0 where it cannot be told."""
    if sys.platform == "win32":

        class Status(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
                (name, ctypes.c_ulonglong)
                for name in ("total", "free", "page_total", "page_free", "virtual_total", "virtual_free", "extended")
            ]

        status = Status(length=ctypes.sizeof(Status))
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.total)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


class PinLedger:
    """How much RAM this process has page-locked through us, against its limit. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.pinned_bytes = 0
        self.limit_bytes = int(total_ram_bytes() * (WINDOWS_SHARE if sys.platform == "win32" else OTHER_SHARE))

    def set_limit_mb(self, limit_mb: float | None) -> None:
        """Caps page-locked RAM at ``limit_mb`` MiB for memory pinned from now on; None keeps the machine's default."""
        if limit_mb is not None:
            self.limit_bytes = int(limit_mb * 2**20)

    def take(self, count: int) -> bool:
        """Reserves ``count`` bytes; False, and nothing reserved, when the limit would be passed."""
        with self._lock:
            if self.pinned_bytes + count > self.limit_bytes:
                return False
            self.pinned_bytes += count
            return True

    def give(self, count: int) -> None:
        """Returns ``count`` bytes that `take` reserved."""
        with self._lock:
            self.pinned_bytes -= count


ledger = PinLedger()


def register_cuda(address: int, count: int, device: torch.device) -> Callable[[], None] | None:
    """Page-locks ``count`` bytes at ``address`` in place for CUDA.

    Returns:
        What undoes it, to be called before the memory is freed; None when the driver refused.
    """
    with torch.cuda.device(device):
        runtime = torch.cuda.cudart()
        if int(runtime.cudaHostRegister(address, count, 0)) != 0:
            drain_cuda_error(device)
            return None

    def unregister() -> None:
        if int(runtime.cudaHostUnregister(address)) != 0:
            drain_cuda_error(device)

    return unregister


def drain_cuda_error(device: torch.device) -> None:
    """A refused registration stays behind as CUDA's last error and would be blamed on the next kernel: read it away."""
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:
        logger.debug("drained a CUDA error left by page-locking: %s", error)
