"""Page-locked RAM: registering memory in place, a process-wide limit, and giving it back.

Memory is registered (`cudaHostRegister`) rather than allocated page-locked: torch rounds each page-locked allocation
up to a power of two, which costs up to twice the weights in RAM, and a registration of 1 GiB takes a tenth of the time.
"""

from __future__ import annotations

import os
import sys
import threading

WINDOWS_SHARE = 0.45  # Windows refuses a process more than about half of RAM
OTHER_SHARE = 0.75  # elsewhere nothing refuses, but a machine without pageable RAM swaps everything else out


def total_ram_bytes() -> int:
    """Physical RAM of this machine; 0 where it cannot be told."""
    try:
        import psutil  # the webui brings it

        return int(psutil.virtual_memory().total)
    except ImportError:
        names = getattr(os, "sysconf_names", {})
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in names else 0


class PinLedger:
    """How much RAM this process has page-locked through us, against its limit. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.pinned_bytes = 0
        self.told: int | None = None  # the limit that the user was told of last
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

    def to_tell(self) -> bool:
        """Whether the user does not know yet that something could not be locked: once for each limit."""
        told, self.told = self.told, self.limit_bytes
        return told != self.limit_bytes


ledger = PinLedger()
