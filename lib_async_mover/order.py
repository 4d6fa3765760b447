"""The order: a module's leaves, with their traps, in the order in which a forward runs them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import nn

from .hooks import Hook
from .leaf import Leaf, find_leaves

logger = logging.getLogger("async_lowvram")

RETRACE_AFTER = 2  # forwards with a leaf outside the recorded order, before it is recorded anew; then ever more


class Order:
    """Recorded by a first forward, or for a *whole* module taken as it is defined."""

    def __init__(self, name: str, root: nn.Module, whole: bool, trap_for: Callable[[Leaf], Hook]) -> None:
        """
        Args:
            trap_for: makes the forward pre-hook that a leaf carries while it is not bound.
        """
        self._name = name
        self._root = root
        self._whole = whole
        self._trap_for = trap_for
        self._traced: dict[int, Leaf] = {}
        self._strange_forwards = 0
        self._retrace_after = RETRACE_AFTER
        self.leaves: list[Leaf] = []
        self.known: list[Leaf] | None = None  # the order; None until it is recorded
        self.find()

    def find(self) -> None:
        """Looks at the modules anew. The order is kept if the leaves are still the same modules."""
        before = {id(leaf.module) for leaf in self.leaves}
        leaves, self.standing = find_leaves(self._root)
        self.remove_traps()
        self.leaves = leaves
        for leaf in leaves:
            leaf.trap = self._trap_for(leaf)
            leaf.key = leaf.module.register_forward_pre_hook(leaf.trap, prepend=True).id
        if self._whole:
            self.known = list(leaves)
        elif self.known is not None:
            now = {id(leaf.module): leaf for leaf in leaves}
            self.known = [now[id(leaf.module)] for leaf in self.known] if before == set(now) else None

    def remove_traps(self) -> None:
        """Leaves carry nothing of ours any more."""
        for leaf in self.leaves:
            leaf.module._forward_pre_hooks.pop(leaf.key, None)

    def begin_trace(self) -> None:
        """The coming forward is recorded."""
        self._traced = {}

    def trace(self, leaf: Leaf) -> bool:
        """A leaf is loaded on the spot: it is recorded, if a trace goes on.

        Returns:
            Whether it is strange: there is an order, and the leaf is not in it.
        """
        if self.known is None:
            self._traced.setdefault(id(leaf), leaf)
            return False
        return leaf.index < 0

    def end_trace(self) -> None:
        """The recorded forward was completed."""
        if self.known is None and self._traced:
            self.known = list(self._traced.values())

    def outlived(self) -> bool:
        """A forward had a strange leaf. Returns whether there were too many: the order is forgotten then."""
        self._strange_forwards += 1
        if self._strange_forwards < self._retrace_after:
            return False
        logger.info("%s: forwards run other layers than the first did; recording the order anew", self._name)
        self._strange_forwards = 0
        self._retrace_after *= 4
        self.known = None
        return True
