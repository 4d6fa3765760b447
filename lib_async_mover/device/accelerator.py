"""The CUDA and XPU backend: one copy stream, an event a copy, no stream context in the hot path."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch

from lib_async_mover.device.backend import Backend, Copy, Done, Mark, TimedCopies
from lib_async_mover.device.staging import Carry, Stager, carry_pinned

logger = logging.getLogger("async_lowvram")


class AcceleratorBackend(Backend):
    """Copies on a dedicated stream of ``torch.cuda`` or ``torch.xpu``, which offer the same calls."""

    def __init__(self, device: torch.device, after_copy: Callable[[int], None] | None = None) -> None:
        """``after_copy`` is told the bytes of each copy once it was issued, with `copy_stream` current."""
        self._torch: Any = getattr(torch, device.type)
        index = self._torch.current_device() if device.index is None else device.index
        self.device = torch.device(device.type, index)
        self.copy_stream = self._torch.Stream(device=self.device)
        self._compute = self._torch.current_stream(self.device)
        self._stager: Stager | None = None  # there while something is pageable, and everything goes through it then
        self._after_copy = after_copy
        self._timed: TimedCopies | None = None
        # A mover that is dropped, not detached, may have copies in flight into memory that is about to be freed. Weak
        # references are told before anything of a cycle is taken apart.
        weakref.finalize(self, self._torch.synchronize, self.device).atexit = False

    def page_lock(self, address: int, count: int) -> Callable[[], None] | None:
        if self.device.type == "cuda":
            return register_cuda(address, count, self.device)
        return None  # XPU has no registration in place: staged copies

    @property
    def waits_block(self) -> bool:  # type: ignore[override]
        return self._stager is not None

    def use_current_stream(self) -> bool:
        before, self._compute = self._compute, self._torch.current_stream(self.device)
        return bool(before != self._compute)

    def copy(self, source: torch.Tensor, target: torch.Tensor, pinned: bool, after: Done | None) -> Copy:
        copy, timed = Copy(source, target, self._torch.Event(), None), self._timed
        if self._stager is None and not pinned:
            self._stager = Stager(self.device, self.copy_stream)
        if self._stager is not None:
            issue = lambda copy, carry: self._issue(copy, after, timed, carry)
            copy.issued = self._stager.submit(copy, pinned, issue)
        else:
            with self._torch.stream(self.copy_stream):
                self._issue(copy, after, timed, carry_pinned)
        return copy

    def _issue(self, copy: Copy, after: Done | None, timed: TimedCopies | None, carry: Carry) -> None:
        stream = self.copy_stream
        if after is not None:
            stream.wait_event(after)
        if timed is not None:
            start, end = self._torch.Event(enable_timing=True), self._torch.Event(enable_timing=True)
            start.record(stream)
        carry(copy)
        if self._after_copy is not None:
            self._after_copy(copy.source.numel())
        if timed is not None:
            end.record(stream)
            timed.append((copy.source.numel(), start, end))
        copy.ready.record(stream)

    def wait_for_copy(self, copy: Copy) -> None:
        if copy.issued is not None:  # waiting for an event before it was recorded waits for nothing
            copy.issued.result()
        self._compute.wait_event(copy.ready)

    def release(self, copy: Copy) -> Done:
        done = self._torch.Event()
        done.record(self._compute)
        return done

    def fence_copies(self) -> None:
        self._drain()
        self.copy_stream.wait_stream(self._torch.current_stream(self.device))

    def fence_compute(self) -> None:
        self._drain()
        self._torch.current_stream(self.device).wait_stream(self.copy_stream)

    def synchronize(self) -> None:
        self._drain()
        self.copy_stream.synchronize()

    def _drain(self) -> None:
        if self._stager is not None:
            self._stager.drain()

    def close(self) -> None:
        self.synchronize()
        stager, self._stager = self._stager, None
        if stager is not None:
            stager.close()

    def free_bytes(self) -> int:
        return self._free_and_total()[0]

    def total_bytes(self) -> int:
        return self._free_and_total()[1]

    def _free_and_total(self) -> tuple[int, int]:
        try:
            free, total = self._torch.mem_get_info(self.device)
        except (AttributeError, RuntimeError):  # old builds of XPU do not tell: as if nobody else were there
            total = self._torch.get_device_properties(self.device).total_memory
            free = total - self._reserved()
        return int(free), int(total)

    def _reserved(self) -> int:
        return int(self._torch.memory_reserved(self.device)) if hasattr(self._torch, "memory_reserved") else 0

    def cached_bytes(self) -> int:
        reserved = self._reserved()
        return reserved - int(self._torch.memory_allocated(self.device)) if reserved else 0

    def empty_cache(self) -> None:
        self._torch.empty_cache()

    def mark_compute(self) -> Mark:
        mark = self._torch.Event(enable_timing=True)
        mark.record(self._compute)
        return mark

    def time_copies(self, into: TimedCopies | None) -> None:
        self._timed = into

    def passed(self, mark: Mark) -> bool:
        return bool(mark.query())

    def elapsed_ms(self, start: Mark, end: Mark) -> float:
        return float(start.elapsed_time(end))


def register_cuda(address: int, count: int, device: torch.device) -> Callable[[], None] | None:
    """Page-locks ``count`` bytes at ``address`` in place. Returns what undoes it; None if the driver refused."""
    with torch.cuda.device(device):
        runtime = torch.cuda.cudart()
        if int(runtime.cudaHostRegister(address, count, 0)) != 0:
            _drain_cuda_error(device)
            return None

    def unregister() -> None:
        if int(runtime.cudaHostUnregister(address)) != 0:
            _drain_cuda_error(device)

    return unregister


def _drain_cuda_error(device: torch.device) -> None:
    """A refused registration stays behind as CUDA's last error and would be blamed on the next kernel: read it away."""
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:
        logger.debug("drained a CUDA error left by page-locking: %s", error)
