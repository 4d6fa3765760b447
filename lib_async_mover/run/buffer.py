"""The buffer's size: what was asked for, and what of it is used."""

from __future__ import annotations

import logging

from lib_async_mover.device.backend import Backend
from lib_async_mover.memory.leaf import ALIGN
from lib_async_mover.plan.budget import auto_budget
from lib_async_mover.plan.planner import least_budget_bytes
from lib_async_mover.plan.workload import MIB, Workload

logger = logging.getLogger("async_lowvram")

AUTO_START_BYTES = 256 * MIB  # the automatic size before anything was measured
RESERVE_BYTES = 256 * MIB  # left to other programs by the automatic size


class Buffer:
    """All VRAM that a module's weights take."""

    def __init__(self, name: str, backend: Backend) -> None:
        self._name = name
        self._backend = backend
        self.cap_bytes: int | None = None  # what the device refused is not asked for again
        self.asked_mb: float | None = None  # when the size was decided last; 0 is automatic

    def bytes(self, asked_mb: float, load: Workload, measured: bool, held_bytes: int) -> int:
        """The size to plan for; ``asked_mb`` = 0 chooses the smallest that is as good as any that fits.

        ``measured`` says whether the load's times are; the present arena would give ``held_bytes`` back.
        """
        another = asked_mb != self.asked_mb
        if another:
            self.cap_bytes, self.asked_mb = None, asked_mb
        least = least_budget_bytes(load)
        if asked_mb > 0:
            wanted = int(asked_mb * MIB)
            if wanted < least and another:
                logger.info(
                    "%s: its largest layer needs a buffer of %.1f MiB, used instead of %.1f; choose at least that",
                    self._name, least / MIB, asked_mb,
                )  # fmt: skip
        elif measured:
            # Torch keeps what activations needed in the last forwards, so what the device has free now is truly free.
            wanted = auto_budget(load, max(least, self._backend.free_bytes() + held_bytes - RESERVE_BYTES))
        else:
            wanted = AUTO_START_BYTES
        # The planner lays slots out from both ends of the ring, so that its size is a multiple of `ALIGN` too.
        return max(least, min(wanted, self.cap_bytes or wanted)) // ALIGN * ALIGN

    def refused(self, wanted: int, load: Workload) -> bool:
        """The device has no room for that many bytes: less is asked for from now on. False if there is no less."""
        least = least_budget_bytes(load)
        if wanted <= least:
            return False
        # More than all weights was never asked of the device, whatever the size.
        self.cap_bytes = max(least, min(wanted, load.weight_bytes + load.fixed_bytes) // 2)
        logger.warning(
            "%s: no room in VRAM for the weight buffer; trying %d MiB. A smaller buffer size avoids this",
            self._name, self.cap_bytes >> 20,
        )  # fmt: skip
        return True
