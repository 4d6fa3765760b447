"""The CPU backend: a worker thread plays the copy stream, for machines without a GPU.

The compute is the calling thread, so it is over when a call returns, and nothing has to wait for it.
`tests/checked_backend.py` finds what a real GPU would do wrong without its waits.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from lib_async_mover.device.backend import Backend, Copy, Done, Mark, TimedCopies


class CpuBackend(Backend):
    """Copies run in a thread, in order."""

    waits_block = True

    def __init__(self, bus_gbps: float | None = None, memory_bytes: int = 2 << 30) -> None:
        """Copies last as long as over a bus of ``bus_gbps``; ``memory_bytes`` is what `free_bytes` says."""
        self.device = torch.device("cpu")
        self._seconds_per_byte = 1 / (bus_gbps * 1e9) if bus_gbps else 0.0
        self._memory_bytes = memory_bytes
        self._timed: TimedCopies | None = None
        self._copies = ThreadPoolExecutor(1, "async-lowvram-copies")
        self._last: Future | None = None  # of the copies

    def use_current_stream(self) -> bool:
        return False

    def copy(self, source: torch.Tensor, target: torch.Tensor, pinned: bool, after: Done | None) -> Copy:
        timed = self._timed

        def job() -> None:
            started = time.perf_counter()
            if delay_s := self.delay_s(source.numel()):
                time.sleep(delay_s)
            target.copy_(source)
            if timed is not None:
                timed.append((source.numel(), started, time.perf_counter()))

        self._last = self._copies.submit(job)
        return Copy(source, target, self._last, None)

    def delay_s(self, count: int) -> float:
        """How long the bus takes for so many bytes, beyond the copy itself."""
        return count * self._seconds_per_byte

    def wait_for_copy(self, copy: Copy) -> None:
        copy.ready.result()

    def release(self, copy: Copy) -> Done:
        return None

    def fence_copies(self) -> None:
        pass

    def fence_compute(self) -> None:
        self.synchronize()

    def synchronize(self) -> None:
        if self._last is not None:
            wait([self._last])  # `wait_for_copy` raises what a copy raised

    def close(self) -> None:
        self._copies.shutdown()

    def free_bytes(self) -> int:
        return self._memory_bytes

    def mark_compute(self) -> Mark:
        return time.perf_counter()

    def time_copies(self, into: TimedCopies | None) -> None:
        self._timed = into

    def passed(self, mark: Mark) -> bool:
        return True

    def elapsed_ms(self, start: Mark, end: Mark) -> float:
        return float(end - start) * 1e3
