"""The order: a module's leaves, with their load hooks, in the order in which a forward runs them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from torch import nn

from lib_async_mover.memory.leaf import Leaf, find_leaves, own_memory
from lib_async_mover.run.hooks import Hook

logger = logging.getLogger("async_lowvram")

RETRACE_AFTER = 2  # forwards with a leaf outside the recorded order, before it is recorded anew; then ever more


class Order:
    """Recorded by a first forward, or for a *whole* module taken as it is defined."""

    def __init__(self, name: str, root: nn.Module, whole: bool, load_hook_for: Callable[[Leaf], Hook]) -> None:
        """``load_hook_for`` makes the forward pre-hook that a leaf carries while it is not bound."""
        self._name = name
        self._root = root
        self.whole = whole
        self._load_hook_for = load_hook_for
        self._traced: dict[int, Leaf] = {}
        self._read_aside: set[int] = set()  # ids of modules that were seen to be read from outside their call
        self._unexpected_forwards = 0
        self._retrace_after = RETRACE_AFTER
        self._leaves: list[Leaf] = []
        self.standing = Leaf("", root, [])
        self.known: list[Leaf] | None = None  # the order; None until it is recorded
        self.find_leaves()

    def find_leaves(self) -> None:
        """Looks at the modules anew. The order is kept if the leaves are still the same modules."""
        before = {id(leaf.module) for leaf in self._leaves}
        leaves, standing = find_leaves(self._root, self._read_aside)
        own_memory(self._root)
        self.remove_hooks()
        self._leaves, self.standing = leaves, standing
        for leaf in [*leaves, standing]:
            for module in leaf.members if leaf is standing else [leaf.module]:
                if module is not self._root:
                    hook = self._load_hook_for(leaf)
                    key = module.register_forward_pre_hook(hook, prepend=True).id
                    leaf.hooks.append((module._forward_pre_hooks, key, hook))
        if self.whole:
            self.known = list(leaves)
        elif self.known is not None:
            now = {id(leaf.module): leaf for leaf in leaves}
            self.known = [now[id(leaf.module)] for leaf in self.known] if before == set(now) else None

    def bytes(self) -> int:
        """Of all weights, as they are packed."""
        return sum(leaf.bytes() for leaf in [*self._leaves, self.standing])

    @property
    def leaves(self) -> list[Leaf]:
        """All but what stands."""
        return list(self._leaves)

    def others(self) -> list[Leaf]:
        """Leaves that are not in the order."""
        known = set(map(id, self.known or ()))
        return [leaf for leaf in self._leaves if id(leaf) not in known]

    def remove_hooks(self) -> None:
        """Leaves carry nothing of ours any more."""
        for leaf in [*self._leaves, self.standing]:
            for hooks, key, _ in leaf.hooks:
                hooks.pop(key, None)

    def start_trace(self) -> None:
        """The coming forward is recorded."""
        self._traced = {}

    def trace(self, leaf: Leaf) -> bool:
        """A leaf is loaded on demand: it is recorded, if a trace goes on. Returns whether the order lacks it."""
        if self.known is None:
            self._traced.setdefault(id(leaf), leaf)
            return False
        return leaf.index < 0

    def end_trace(self, read_aside: Collection[Leaf]) -> None:
        """The recorded forward was completed. If leaves were ``read_aside`` of their call, another one is recorded."""
        if read_aside:
            logger.info(
                "%s: %d layers are read from outside their call, %s for one; they stay on the device while it runs",
                self._name, len(read_aside), next(iter(read_aside)).name,
            )  # fmt: skip
            self._read_aside |= {id(leaf.module) for leaf in read_aside}
            self.find_leaves()
        elif self.known is None and self._traced:
            self.known = list(self._traced.values())

    def needs_retrace(self) -> bool:
        """A forward had an unexpected leaf. Returns whether there were too many: the order is forgotten then."""
        self._unexpected_forwards += 1
        if self._unexpected_forwards < self._retrace_after:
            return False
        logger.info("%s: forwards run other layers than the first did; recording the order anew", self._name)
        self._unexpected_forwards = 0
        self._retrace_after *= 4
        self.known = None
        return True
