"""The pack: a module's weights in the host store, in execution order, with what the planner must know of them."""

from __future__ import annotations

import logging
import time

import torch
from torch import nn

from .backend import Backend
from .hoststore import HostStore
from .leaf import Leaf, aligned
from .masters import Masters
from .plan import ALIGN

MEASURED_BYTES = 32 << 20

logger = logging.getLogger("async_lowvram")


class Pack:
    """Valid as long as `Masters.in_place` says so. Packing moves every tensor of the module to the host store."""

    def __init__(
        self, name: str, root: nn.Module, order: list[Leaf], leaves: list[Leaf], standing: Leaf, backend: Backend
    ) -> None:
        """
        Args:
            order: the leaves that a forward runs, in that order.
            leaves: all leaves; those that no forward ran are stored too.
            standing: what is bound for a whole forward.
        """
        started = time.perf_counter()
        self.order = order
        self.standing = standing
        for index, leaf in enumerate(order):
            leaf.index = index
        ordered = set(map(id, order))
        self.store = HostStore()
        self.store.pack([[standing], order, [leaf for leaf in leaves if id(leaf) not in ordered]], backend.register())
        self.masters = Masters(root, [standing, *leaves])
        places = [self.store.places[id(leaf)] for leaf in order]
        self.leaf_bytes = [place.bytes for place in places]
        # A unit is one copy, so it may not reach from one span into the next.
        self.barriers = frozenset(i for i in range(1, len(places)) if places[i].span is not places[i - 1].span)
        self.fixed_bytes = aligned(self.store.places[id(standing)].bytes, ALIGN)
        self.seconds = time.perf_counter() - started
        logger.info(
            "%s: %d MiB of weights packed in %.1f s, %d MiB of page-locked RAM",
            name, self.bytes >> 20, self.seconds, self.store.pinned_bytes >> 20,
        )  # fmt: skip

    def largest_source(self) -> torch.Tensor:
        """Some of the weights to measure the bus with: shape (n,), uint8, n at most 32 MiB."""
        return max((span.raw for span in self.store.spans), key=torch.Tensor.numel)[:MEASURED_BYTES]

    @property
    def bytes(self) -> int:
        """All weights, in bytes, padding included."""
        return self.store.pinned_bytes + self.store.pageable_bytes
