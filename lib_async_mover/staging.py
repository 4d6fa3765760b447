"""Copies from memory that could not be page-locked: a worker thread carries them through a small locked buffer.

A copy straight from pageable memory blocks the thread that issues it until the driver has read everything, so the
compute would starve. Here a worker blocks instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from .unit import Unit
from .worker import Worker

Carry = Callable[[Unit], None]  # issues the copy of a unit's bytes, however they lie

CHUNK_BYTES = 16 << 20  # two of them; a power of two, so that torch's page-locked allocator wastes nothing


class Buffers:
    """Two page-locked buffers, used in turn on one copy stream."""

    def __init__(self, device: torch.device, copies: Any) -> None:
        runtime: Any = getattr(torch, device.type)
        self._copies = copies
        pinned = [torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._parts = [(buffer, runtime.Event()) for buffer in pinned]

    def carry(self, unit: Unit) -> None:
        """Issues the copy of pageable bytes to the device, blocking while the buffers are on their way."""
        source, target = unit.source, unit.target
        for start in range(0, source.numel(), CHUNK_BYTES):
            part = source[start : start + CHUNK_BYTES]
            buffer, free = self._parts[0]
            self._parts.reverse()
            free.synchronize()
            buffer[: part.numel()].copy_(part)
            target[start : start + CHUNK_BYTES].copy_(buffer[: part.numel()], non_blocking=True)
            free.record(self._copies)


def by_torch(unit: Unit) -> None:
    """Issues the copy of page-locked bytes on the current stream."""
    unit.target.copy_(unit.source, non_blocking=True)


class Stager:
    """Runs all copies of a backend in order, in a thread of its own, on the copy stream it is given."""

    def __init__(self, device: torch.device, copies: Any) -> None:
        runtime: Any = getattr(torch, device.type)
        self._buffers = Buffers(device, copies)
        self._issued: dict[int, threading.Event] = {}  # by id of the unit
        self._failures: list[Exception] = []
        self._worker = Worker("async-lowvram-staging")
        self._worker.submit(lambda: runtime.set_device(device))
        self._worker.submit(lambda: runtime.set_stream(copies))

    def submit(self, unit: Unit, after: Unit | None, issue: Callable[[Unit, Unit | None, Carry], None]) -> None:
        """Queues ``issue(unit, after, carry)``, with a ``carry`` that suits where the bytes lie."""
        issued = self._issued[id(unit)] = threading.Event()
        carry = by_torch if unit.pinned else self._buffers.carry
        failures = self._failures

        def job() -> None:
            try:
                issue(unit, after, carry)
            except Exception as error:  # noqa: BLE001 - the forward that waits for this unit raises it
                failures.append(error)
            finally:
                issued.set()

        self._worker.submit(job)

    def keep(self, unit: Unit) -> None:
        """The unit's bytes are there without a copy."""
        issued = self._issued[id(unit)] = threading.Event()
        issued.set()

    def wait_issued(self, unit: Unit) -> None:
        """Blocks the host until the unit's ready event was recorded: waiting for it any earlier waits for nothing."""
        self._issued[id(unit)].wait()
        if self._failures:
            raise self._failures.pop()

    def drain(self) -> None:
        """Blocks the host until everything queued has been issued."""
        self._worker.drain()

    def close(self) -> None:
        """Ends the thread."""
        self._worker.close()
