"""A CPU backend that finds missing waits.

The compute is the calling thread, so it is over when a call returns; what a real GPU would do wrong without a wait is
therefore found by clock stamps: every use of a slot has a time on the compute's clock, every wait of the copy stream
carries one over, and a copy over a slot whose last use it does not know of raises `RaceError`. Missing waits for copies
need no checker: the data is not there yet, and with ``poison`` it is NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from lib_async_mover.device.backend import Copy, Done
from lib_async_mover.device.cpu import CpuBackend

POISON = 0xFF  # NaN in every float format, and an absurd integer
TIMEOUT_S = 60

Range = tuple[int, int]  # bytes [start, stop) of the arena


class RaceError(AssertionError):
    """A copy over memory that a computation may still read."""


class CheckedBackend(CpuBackend):
    """Copies are as late as ``delay`` says."""

    def __init__(
        self, delay: Callable[[int], float] | None = None, poison: bool = False, memory_bytes: int = 2 << 30
    ) -> None:
        """
        Args:
            delay: seconds to wait before a copy of so many bytes.
            poison: fill a streamed slot with NaN the moment it is released, and new memory at once.
        """
        super().__init__(memory_bytes=memory_bytes)
        self._delay = delay
        self._poison = poison
        self._clock = 0
        self._known = 0  # compute time up to which the copy stream has waited
        self._used: dict[Range, float] = {}  # by slot: when it was last read; infinite while it may be
        self._taken = 0  # when the arena's memory came from the allocator

    def delay_s(self, count: int) -> float:
        return self._delay(count) if self._delay is not None else 0.0

    def copy(self, source: torch.Tensor, target: torch.Tensor, pinned: bool, after: Done | None) -> Copy:
        if after is not None:
            self._known = max(self._known, after)
        start, stop = slot_of(target)
        for other, until in self._used.items():
            if other[0] < stop and start < other[1] and until > self._known:
                raise RaceError(f"copy into {(start, stop)} over {other}, which the compute may still read ({until})")
        if self._taken > self._known:
            raise RaceError(f"copy into {(start, stop)}, memory that queued compute may still use otherwise")
        return super().copy(source, target, pinned, after)

    def wait_for_copy(self, copy: Copy) -> None:
        copy.ready.result(TIMEOUT_S)
        self._used[slot_of(copy.target)] = float("inf")

    def release(self, copy: Copy) -> Done:
        self._clock += 1
        self._used[slot_of(copy.target)] = self._clock
        if self._poison:
            copy.target.fill_(POISON)
        return self._clock

    def fence_copies(self) -> None:
        self._known = self._clock
        # What is still in use is resident: nothing is copied over it but itself, and only after this.
        self._used = {slot: min(until, self._clock) for slot, until in self._used.items()}

    def memory_taken(self, raw: torch.Tensor) -> None:
        self._clock += 1
        self._taken = self._clock
        self._used = {}
        if self._poison:
            raw.fill_(POISON)

    def memory_freed(self) -> None:
        if self._last is not None and not self._last.done():
            self.synchronize()
            raise RaceError("the arena was given back while copies into it were in flight")


def slot_of(target: torch.Tensor) -> Range:
    start = int(target.storage_offset())
    return start, start + target.numel()
