"""The buffer's size: what was asked for, and what of it is used.

Weights yield to activations: where memory ran out, or nearly so, the buffer is smaller from then on, for inputs of that
size alone, and until the user chooses another one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from math import inf

from lib_async_mover.device.backend import Backend
from lib_async_mover.memory.leaf import ALIGN
from lib_async_mover.plan.budget import auto_budget
from lib_async_mover.plan.planner import least_budget_bytes
from lib_async_mover.plan.workload import MIB, Workload
from lib_async_mover.run.forward_scope import Signature

logger = logging.getLogger("async_lowvram")

AUTO_START_BYTES = 256 * MIB  # the automatic size before anything was measured
RESERVE_BYTES = 256 * MIB  # left free by the automatic size, or
RESERVE_SHARE = 0.03  # of the device's memory, if that is more
PLANNED = 1.125  # × the reserve is left by a plan, so that it is not at once too large
RAISED_AFTER = 8  # forwards of a size with a larger buffer, before it is taken: sizes may alternate in every step


class Buffer:
    """All VRAM that a module's weights take. Inputs are of one size if the first is: image size and batch."""

    def __init__(self, name: str, backend: Backend) -> None:
        self._name = name
        self._backend = backend
        self.asked_mb: float | None = None  # when the size was decided last; 0 is automatic
        self.oom_retries = 0  # times that it was halved because memory ran out in a forward
        self._size: Signature = ()  # of the inputs
        self._alike = 0  # forwards in a row with inputs of that size, before this one
        self._caps: dict[Signature, int] = {}  # by size: where memory ran out, no more than this is asked for again
        self.cap: float = inf  # bytes, in this forward; infinite if memory never ran out
        self._cap_used: float = inf  # by the plan in force
        self._rooms: dict[Signature, int] = {}  # by size: bytes that weights could have beside activations
        self._emptied = False  # torch's cache, in this run of forwards

    def begin(self, signature: Signature, held_bytes: int) -> None:
        """A forward begins with such inputs, while an arena of ``held_bytes`` is there."""
        size = signature[:1]
        self._alike = self._alike + 1 if size == self._size else 0
        self._size = size
        self._emptied &= held_bytes > 0
        self.cap = self._caps.get(size, inf)
        if held_bytes and self._alike < RAISED_AFTER:  # a smaller one counts at once, a larger one does not
            self.cap = min(self.cap, self._cap_used)

    @property
    def cap_changed(self) -> bool:
        """Whether the plan in force was made with another cap."""
        return self.cap != self._cap_used

    def shrink_due(self, used_bytes: int, held_bytes: int, load: Callable[[], Workload]) -> bool:
        """A forward of an automatic size begins, and is not the first of its run: whether a smaller one is due because
        the device is nearly full. Windows raises nothing then, but lets the GPU use RAM.

        Torch keeps what activations needed in the last forward, so what the device has free now is truly free.
        """
        free_bytes = self._backend.free_bytes()
        short = free_bytes < self._reserve
        if self._alike or short:
            self._rooms[self._size] = free_bytes + held_bytes
        if short and not self._emptied:  # what other stages left in torch's cache goes first
            self._emptied = True
            self._backend.empty_cache()
            return False
        if not short or used_bytes <= least_budget_bytes(load()):
            return False
        logger.warning(
            "%s: VRAM is nearly full, %d MiB are free: its buffer of %d MiB shrinks. Close other programs for more",
            self._name, free_bytes >> 20, held_bytes >> 20,
        )  # fmt: skip
        return True

    @cached_property
    def _reserve(self) -> float:
        return max(RESERVE_BYTES, RESERVE_SHARE * self._backend.total_bytes())

    def _room(self, held_bytes: int) -> int:
        """What weights may have."""
        most = self._backend.free_bytes() + self._backend.cached_bytes() + held_bytes
        return int(min(most, self._rooms.get(self._size, inf)) - PLANNED * self._reserve)

    def fits(self, count: int) -> bool:
        """Whether so many bytes of weights fit beside what is there, and leave the reserve. Says so if not."""
        room = self._room(0)
        if count > room:
            logger.info(
                "%s: %d MiB of weights do not fit into the %d MiB of VRAM to be had, so they stream",
                self._name, count >> 20, max(0, room) >> 20,
            )  # fmt: skip
        return count <= room

    def bytes(self, asked_mb: float, load: Workload, measured: bool, held_bytes: int) -> int:
        """The size to plan for; ``asked_mb`` = 0 chooses the smallest that is as good as any that fits.

        ``measured`` says whether the load's times are; the present arena would give ``held_bytes`` back.
        """
        another = asked_mb != self.asked_mb
        if another:
            self.asked_mb = asked_mb
            self._caps.clear()
            self.cap = inf
        least = least_budget_bytes(load)
        if asked_mb > 0:
            wanted = int(asked_mb * MIB)
            if wanted < least and another:
                logger.info(
                    "%s: its largest layer needs a buffer of %.1f MiB, used instead of %.1f; choose at least that",
                    self._name, least / MIB, asked_mb,
                )  # fmt: skip
        else:
            room = max(least, self._room(held_bytes))
            wanted = auto_budget(load, room) if measured else min(AUTO_START_BYTES, room)
        self._cap_used = self.cap
        # The planner lays slots out from both ends of the ring, so that its size is a multiple of `ALIGN` too.
        return int(max(least, min(wanted, self.cap))) // ALIGN * ALIGN

    def refused(self, wanted: int, load: Workload) -> bool:
        """The device has no room for that many bytes: less is asked for from now on. False if there is no less."""
        why = "no room in VRAM for the weight buffer; trying %d MiB, not %d. A smaller buffer size avoids this"
        return self._halve(wanted, load, why)

    def halve(self, used_bytes: int, load: Workload) -> bool:
        """Memory ran out in a forward with that buffer: half of it from now on. False if it is the least already."""
        why = "out of VRAM; trying again with a buffer of %d MiB, not %d. A smaller buffer size, or image, avoids this"
        halved = self._halve(used_bytes, load, why)
        self.oom_retries += halved
        return halved

    def _halve(self, used_bytes: int, load: Workload, why: str) -> bool:
        """For inputs of this size, until another size is asked for. False if it is the least already."""
        least = least_budget_bytes(load)
        used = min(used_bytes, load.weight_bytes + load.fixed_bytes)  # more is never asked of the device
        if used <= least:
            return False
        self._caps[self._size] = self.cap = cap = max(least, used // 2)
        logger.warning(f"%s: {why}", self._name, cap >> 20, used >> 20)
        return True
