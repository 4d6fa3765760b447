"""The unit: what one copy moves, into one slot."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import torch

from lib_async_mover.device.backend import Copy, Done
from lib_async_mover.memory.host_store import HostStore
from lib_async_mover.run.binding import Binding


class Residence(Enum):
    """Where a resident is."""

    ABSENT = auto()  # nothing of it is on the device, or something stale
    COPYING = auto()  # its copy was issued
    READY = auto()  # the compute has waited for that copy
    BOUND = auto()  # its leaves see the device's tensors


@dataclass(eq=False)
class Unit:
    """Consecutive leaves, in execution order, moved by one copy into one slot of the arena."""

    index: int  # place in execution order; -1 for what stands for the whole forward
    resident: bool  # keeps its slot; otherwise the slot is part of the ring
    source: torch.Tensor  # host bytes, shape (bytes,), uint8, within one span of the host store
    pinned: bool  # `source` is page-locked
    target: torch.Tensor  # the slot, shape (bytes,), uint8, a view of the arena
    binding: Binding  # its GPU twins are views of `target`
    store: HostStore  # where its leaves' weights lie
    copy: Copy | None = None  # the last one that was issued
    done: Done | None = None  # the compute that read the slot last
    residence: Residence = Residence.ABSENT  # of a resident

    def overlaps(self, other: Unit) -> bool:
        """Whether the two slots share a byte."""
        start, after = self.target.storage_offset(), other.target.storage_offset()
        return start < after + other.target.numel() and after < start + self.target.numel()
