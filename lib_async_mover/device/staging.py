"""Copies from memory that could not be page-locked: a thread carries them through a small locked buffer.

A copy straight from pageable memory blocks the thread that issues it until the driver has read everything, so the
compute would starve. Here another thread blocks instead.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from lib_async_mover.device.backend import Copy

CHUNK_BYTES = 16 << 20  # two of them; a power of two, so that torch's page-locked allocator wastes nothing

Carry = Callable[[Copy], None]  # issues the copy of the bytes, however they lie


def carry_pinned(copy: Copy) -> None:
    """Issues the copy of page-locked bytes on the current stream."""
    copy.target.copy_(copy.source, non_blocking=True)


class Stager:
    """Issues all copies of a backend in order, in a thread of its own, on the copy stream it is given."""

    def __init__(self, device: torch.device, copy_stream: Any) -> None:
        runtime: Any = getattr(torch, device.type)
        self._copy_stream = copy_stream
        pinned = [torch.empty(CHUNK_BYTES, dtype=torch.uint8, device="cpu", pin_memory=True) for _ in range(2)]
        self._buffers = [(buffer, runtime.Event()) for buffer in pinned]  # used in turn
        self._thread = ThreadPoolExecutor(1, "async-lowvram-staging")
        self._thread.submit(runtime.set_device, device)
        self._thread.submit(runtime.set_stream, copy_stream)

    def submit(self, copy: Copy, pinned: bool, issue: Callable[[Copy, Carry], None]) -> Future:
        """Queues ``issue(copy, carry)``, with a ``carry`` that suits where the bytes lie."""
        return self._thread.submit(issue, copy, carry_pinned if pinned else self._carry)

    def _carry(self, copy: Copy) -> None:
        for start in range(0, copy.source.numel(), CHUNK_BYTES):
            chunk = copy.source[start : start + CHUNK_BYTES]
            buffer, free = self._buffers[0]
            self._buffers.reverse()
            free.synchronize()
            buffer[: chunk.numel()].copy_(chunk)
            copy.target[start : start + CHUNK_BYTES].copy_(buffer[: chunk.numel()], non_blocking=True)
            free.record(self._copy_stream)

    def drain(self) -> None:
        """Blocks the host until everything queued has been issued."""
        self._thread.submit(int).result()

    def close(self) -> None:
        """Issues everything queued and ends the thread."""
        self._thread.shutdown()
