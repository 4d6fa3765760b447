"""Copies from memory that could not be page-locked: a worker thread carries them through a small locked buffer.

A copy straight from pageable memory blocks the thread that issues it until the driver has read everything, so the
compute would starve. Here a worker blocks instead.
"""

from __future__ import annotations

import queue
import threading
from typing import Any

import torch

from .unit import Unit

CHUNK_BYTES = 16 << 20  # two of them; a power of two, so that torch's page-locked allocator wastes nothing


class Stager:
    """Runs copies in order in a thread of its own, on the copy stream it is given."""

    def __init__(self, device: torch.device, copies: Any) -> None:
        self._torch: Any = getattr(torch, device.type)
        self._device = device
        self._copies = copies
        self._buffers = [torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._free = [self._torch.Event() for _ in self._buffers]
        self._turn = 0
        self._issued: dict[int, threading.Event] = {}  # by id of the unit
        self._jobs: queue.Queue[tuple[Unit, Unit | None, Any, threading.Event] | None] = queue.Queue()
        self._failure: Exception | None = None
        self._worker = threading.Thread(target=self._run, name="async-lowvram-staging", daemon=True)
        self._worker.start()

    def submit(self, unit: Unit, after: Unit | None, times: tuple[Any, Any] | None) -> None:
        """Queues the copy. ``after.done`` must have been recorded; ``unit.ready`` is recorded once it is issued."""
        issued = threading.Event()
        self._issued[id(unit)] = issued
        self._jobs.put((unit, after, times, issued))

    def wait_issued(self, unit: Unit) -> None:
        """Blocks the host until the unit's ready event has been recorded: before that, waiting for it waits for nothing."""
        self._issued[id(unit)].wait()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def drain(self) -> None:
        """Blocks the host until everything queued has been issued."""
        self._jobs.join()

    def close(self) -> None:
        """Ends the thread."""
        self._jobs.put(None)
        self._worker.join()

    def _run(self) -> None:
        self._torch.set_device(self._device)
        self._torch.set_stream(self._copies)
        while (job := self._jobs.get()) is not None:
            unit, after, times, issued = job
            try:
                if after is not None:
                    self._copies.wait_event(after.done)
                if times is not None:
                    times[0].record(self._copies)
                self._carry(unit.source, unit.target)
                if times is not None:
                    times[1].record(self._copies)
                unit.ready.record(self._copies)
            except Exception as error:  # noqa: BLE001 - the forward that waits for this unit raises it
                self._failure = error
            finally:
                issued.set()
                self._jobs.task_done()
        self._jobs.task_done()

    def _carry(self, source: torch.Tensor, target: torch.Tensor) -> None:
        if source.is_pinned():
            target.copy_(source, non_blocking=True)
            return
        for start in range(0, source.numel(), CHUNK_BYTES):
            part = source[start : start + CHUNK_BYTES]
            buffer, free = self._buffers[self._turn], self._free[self._turn]
            self._turn = 1 - self._turn
            free.synchronize()
            buffer[: part.numel()].copy_(part)
            target[start : start + CHUNK_BYTES].copy_(buffer[: part.numel()], non_blocking=True)
            free.record(self._copies)
