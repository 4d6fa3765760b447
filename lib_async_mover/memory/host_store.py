"""The host store: a module's weights in page-locked RAM, in execution order. Always true, never stale.

Tensors are packed into few spans, so that any run of consecutive leaves within a span is one copy. Every tensor keeps
its shape, strides, dtype and identity.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from lib_async_mover.memory.leaf import Leaf, aligned, extent_bytes, kept_strides, own_tensors
from lib_async_mover.memory.pinning import ledger
from lib_async_mover.memory.watch import DictWatch, TensorWatch

logger = logging.getLogger("async_lowvram")

SPAN_BYTES = 256 << 20  # while packing, RAM holds the weights plus one span that is being filled
PAGE_BYTES = 4096

PageLock = Callable[[int, int], "Callable[[], None] | None"]  # (address, bytes) -> what undoes it, or None


class Span:
    """One block of host memory, page-locked if driver and limit allow. Freed with its last tensor."""

    def __init__(self, count: int) -> None:
        self._memory = torch.empty(count + PAGE_BYTES, dtype=torch.uint8, device="cpu")
        skip = -self._memory.data_ptr() % PAGE_BYTES
        self.raw = self._memory[skip : skip + count]  # shape (count,), uint8, page-aligned
        self.bytes = count
        self.pinned = False

    def view(self, like: torch.Tensor, offset: int) -> torch.Tensor:
        """A tensor of ``like``'s shape, kept strides and dtype at byte ``offset``, with a storage of exactly its size.

        So `torch.save`, `copy.deepcopy` and safetensors see an ordinary tensor and never write the whole span.
        """
        count = extent_bytes(like)
        if count == 0:
            return torch.empty_like(like, device="cpu", memory_format=torch.preserve_format)
        buffer = (ctypes.c_ubyte * count).from_address(self.raw.data_ptr() + offset)
        buffer.__dict__["span"] = self  # the tensor holds the buffer, the buffer holds the span
        flat = torch.frombuffer(buffer, dtype=torch.uint8).view(like.dtype)
        return flat.as_strided(like.shape, kept_strides(like))

    def pin(self, page_lock: PageLock) -> bool:
        """Page-locks the span, if the process-wide limit and the driver allow. Returns whether it is page-locked."""
        if not ledger.take(self.bytes):
            return False
        undo = page_lock(self.raw.data_ptr(), self.bytes)
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
    """All tensors of a module, until one of them is no longer the packed one (`intact`, `still_packed`)."""

    def __init__(
        self, root: nn.Module, order: list[Leaf], others: list[Leaf], standing: Leaf, page_lock: PageLock | None
    ) -> None:
        """Moves every tensor here. Old storages are freed as it goes, so RAM peaks at the weights plus one span.

        Args:
            order: the leaves that a forward runs, in that order.
            others: leaves that no forward ran.
            standing: what is bound for a whole forward.
            page_lock: page-locks memory in place; None when the backend needs none.
        """
        started = time.perf_counter()
        self.standing = standing
        self.places: dict[int, Place] = {}  # by id(leaf)
        self.intact = True  # False: a forward replaced a tensor
        self._spans: list[Span] = []
        self._root = weakref.ref(root)
        try:
            self._pack([[standing], order, others], page_lock)
        except BaseException:
            self.unpin()
            raise
        self._look()
        self._packed = self._owned()
        tensors = [tensor for leaf in (standing, *order, *others) for tensor in leaf.tensors()]
        self.in_place = TensorWatch([], tensors).in_place  # whether all lie where they were packed
        self.pinned_bytes = sum(span.bytes for span in self._spans if span.pinned)
        self.bytes = sum(span.bytes for span in self._spans)  # padding included
        self.seconds = time.perf_counter() - started

    def _pack(self, groups: Iterable[list[Leaf]], page_lock: PageLock | None) -> None:
        refused = 0
        for group in groups:
            for part in _parts(group):  # a span never holds two groups
                span = self._fill(part)
                trim_heap()
                if page_lock is not None and not span.pin(page_lock):
                    refused += span.bytes
        if refused:
            logger.warning(
                "page-locked RAM: %d of %d MiB of weights could not be locked (limit %d MiB) and go through a small "
                "locked buffer, which is slower; raise the page-locked RAM limit or close other programs",
                refused >> 20, sum(span.bytes for span in self._spans) >> 20, ledger.limit_bytes >> 20,
            )  # fmt: skip

    def _fill(self, part: list[Leaf]) -> Span:
        span = Span(max(1, sum(leaf.bytes() for leaf in part)))
        self._spans.append(span)
        offset = 0
        with torch.inference_mode(False):  # tensors made in inference mode count no versions
            for leaf in part:
                start, placed = offset, []
                for tensor in leaf.tensors():
                    packed = span.view(tensor, offset)
                    packed.copy_(tensor.detach())
                    tensor.data = packed
                    placed.append((tensor, offset - start))
                    offset += aligned(extent_bytes(tensor))
                self.places[id(leaf)] = Place(span, start, offset - start, tuple(placed))
        return span

    def _look(self) -> None:
        modules = self._modules()
        self._tree = DictWatch(module._modules for module in modules)
        # Also those of modules that own nothing: they may be given something.
        self._dicts = DictWatch(held for module in modules for held in (module._parameters, module._buffers))

    def _owned(self) -> set[tuple[int, ...]]:
        return {(id(module), *map(id, own_tensors(module))) for module in self._modules() if own_tensors(module)}

    def _modules(self) -> list[nn.Module]:
        root = self._root()
        return list(root.modules()) if root is not None else []

    def still_packed(self) -> bool:
        """Whether the module's tensors are the packed ones. Modules around them may come and go.

        Of what was done to one, `in_place` tells, and the pipeline, which looks before it binds.
        """
        if not (self.intact and self._dicts.unchanged()):
            return False
        if not self._tree.unchanged():
            if self._owned() != self._packed:
                return False
            self._look()
        return True

    def unpin(self) -> None:
        """Unlocks all pages; the tensors keep their memory."""
        for span in self._spans:
            span.unpin()


def trim_heap() -> None:
    """Gives freed memory back to the system, where glibc keeps it for the process: gigabytes after a packing."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _parts(group: list[Leaf]) -> Iterable[list[Leaf]]:
    """The leaves in parts of up to a span's size; a larger leaf alone."""
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
