"""The host store: the master copy of the weights, in page-locked RAM, in execution order.

Tensors are packed into few spans, so that any run of consecutive leaves within a span is one copy. Every tensor keeps
its shape, strides, dtype and identity; it gets a torch storage of exactly its own size *over* the span's memory, so
`torch.save`, `copy.deepcopy` and safetensors see an ordinary tensor and never write the whole span.
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from .leaf import Leaf, aligned, extent_bytes, kept_strides
from .pinning import ledger

logger = logging.getLogger("async_lowvram")

SPAN_BYTES = 256 << 20  # while packing, RAM holds the weights plus one span that is being filled
PAGE_BYTES = 4096

Register = Callable[[int, int], "Callable[[], None] | None"]  # (address, bytes) -> what undoes it, or None


class Span:
    """One block of host memory; page-locked if the backend and the limit allow. Freed with its last tensor."""

    def __init__(self, count: int) -> None:
        self._memory = torch.empty(count + PAGE_BYTES, dtype=torch.uint8)
        skip = -self._memory.data_ptr() % PAGE_BYTES
        self.raw = self._memory[skip : skip + count]  # shape (count,), uint8, page-aligned
        self.bytes = count
        self.pinned = False

    def view(self, like: torch.Tensor, offset: int) -> torch.Tensor:
        """A tensor of ``like``'s shape, kept strides and dtype at byte ``offset``, with a storage of its own."""
        count = extent_bytes(like)
        if count == 0:
            return torch.empty_like(like, device="cpu", memory_format=torch.preserve_format)
        buffer = (ctypes.c_ubyte * count).from_address(self.raw.data_ptr() + offset)
        buffer.__dict__["span"] = self  # the tensor holds the buffer, the buffer holds the span
        flat = torch.frombuffer(buffer, dtype=torch.uint8).view(like.dtype)
        return flat.as_strided(like.shape, kept_strides(like))

    def pin(self, register: Register) -> bool:
        """Page-locks the span, if the process-wide limit and the driver allow. Returns whether it is page-locked."""
        if not ledger.take(self.bytes):
            return False
        undo = register(self.raw.data_ptr(), self.bytes)
        if undo is None:
            ledger.give(self.bytes)
            return False
        self.pinned = True
        # Runs before the memory is freed: a finaliser fires ahead of the span's own attributes going.
        self._unpin = weakref.finalize(self, _unpin, undo, self.bytes)
        self._unpin.atexit = False
        return True

    def unpin(self) -> None:
        """Unlocks the pages; the tensors stay."""
        if self.pinned:
            self._unpin()
            self.pinned = False


def _unpin(undo: Callable[[], None], count: int) -> None:
    undo()
    ledger.give(count)


@dataclass(frozen=True)
class Place:
    """Where a leaf lies: ``bytes`` from ``offset`` of a span, and its tensors' offsets from there."""

    span: Span
    offset: int
    bytes: int
    tensors: tuple[tuple[torch.Tensor, int], ...]  # (the CPU parameter or buffer, byte offset within the leaf)


class HostStore:
    """All leaves of a module, packed in the given order."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.places: dict[int, Place] = {}  # by id(leaf)

    @property
    def pinned_bytes(self) -> int:
        return sum(span.bytes for span in self.spans if span.pinned)

    @property
    def pageable_bytes(self) -> int:
        return sum(span.bytes for span in self.spans if not span.pinned)

    def pack(self, groups: Iterable[list[Leaf]], register: Register | None) -> None:
        """Moves every leaf's tensors here. A group is a list of leaves; a span never holds two groups.

        Old storages are freed as it goes, so RAM peaks at the weights plus one span.

        Args:
            register: page-locks memory in place; None when the backend needs none.
        """
        refused = 0
        for group in groups:
            for part in self._parts(group):
                span = self._fill(part)
                if register is not None and not span.pin(register):
                    refused += span.bytes
        if refused:
            logger.warning(
                "page-locked RAM: %d of %d MiB of weights could not be locked (limit %d MiB) and go through a small "
                "locked buffer, which is slower; raise the page-locked RAM limit or close other programs",
                refused >> 20, sum(span.bytes for span in self.spans) >> 20, ledger.limit_bytes >> 20,
            )  # fmt: skip

    @staticmethod
    def _parts(group: list[Leaf]) -> Iterable[list[Leaf]]:
        part: list[Leaf] = []
        filled = 0
        for leaf in group:
            count = leaf.bytes()
            if part and filled + count > SPAN_BYTES:
                yield part
                part, filled = [], 0
            part.append(leaf)
            filled += count
        if part:
            yield part

    def _fill(self, part: list[Leaf]) -> Span:
        span = Span(max(1, sum(leaf.bytes() for leaf in part)))
        offset = 0
        for leaf in part:
            start = offset
            placed = []
            for tensor in leaf.tensors():
                master = span.view(tensor, offset)
                master.copy_(tensor.detach())
                tensor.data = master
                placed.append((tensor, offset - start))
                offset += aligned(extent_bytes(tensor))
            self.places[id(leaf)] = Place(span, start, offset - start, tuple(placed))
        self.spans.append(span)
        return span

    def unpin(self) -> None:
        """Unlocks all pages; the tensors keep their memory."""
        for span in self.spans:
            span.unpin()
