"""A unit: consecutive leaves, in execution order, moved by one copy into one slot of the arena."""

from __future__ import annotations

from typing import Any

import torch

from .binding import Binding


class Unit:
    """What the pipeline moves and binds. ``ready`` and ``done`` belong to the backend, which sets them."""

    __slots__ = (
        "binding", "bytes", "done", "index", "loaded", "offset", "pinned", "ready", "resident", "source", "target",
    )  # fmt: skip

    def __init__(
        self, index: int, resident: bool, source: torch.Tensor, target: torch.Tensor, offset: int, binding: Binding,
        pinned: bool = False,
    ) -> None:  # fmt: skip
        """
        Args:
            index: place in execution order; -1 for what stands for the whole forward.
            resident: keeps its slot; otherwise its slot is part of the ring.
            source: host bytes, shape (bytes,), uint8, within one span of the host store.
            target: the slot, shape (bytes,), uint8, a view of the arena from byte ``offset``.
            binding: the leaves' dictionaries, their GPU twins being views of ``target``.
            pinned: ``source`` is page-locked.
        """
        self.index = index
        self.resident = resident
        self.source = source
        self.target = target
        self.offset = offset
        self.bytes = source.numel()
        self.binding = binding
        self.pinned = pinned
        self.ready: Any = None  # fence: the copy into the slot has ended
        self.done: Any = None  # fence: the compute that read the slot has ended
        self.loaded = False  # a resident's copy has been issued and still holds

    def overlaps(self, other: Unit) -> bool:
        """Whether the two slots share a byte."""
        return self.offset < other.offset + other.bytes and other.offset < self.offset + self.bytes
