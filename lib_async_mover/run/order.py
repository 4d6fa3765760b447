"""The order in which a forward runs the leaves of the root and of those guests that take part in it."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from lib_async_mover.memory.leaf import Leaf
from lib_async_mover.run.part import Part

logger = logging.getLogger("async_lowvram")

RETRACE_AFTER = 2  # forwards with a leaf outside the recorded order, before it is recorded anew; then ever more

PartSet = tuple[Part, ...]  # the root, and guests in the order in which they were given


class Order:
    """Recorded by a first forward of each set of parts, or for a *whole* module taken as it is defined."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: dict[PartSet, list[Leaf]] = {}
        self._traced: dict[int, Leaf] = {}
        self._unexpected_forwards = 0
        self._retrace_after = RETRACE_AFTER

    def of(self, parts: PartSet) -> list[Leaf] | None:
        """None while it is not known. Of fewer parts than were recorded together, it is the same without the others."""
        if parts not in self._known:
            for recorded, order in self._known.items():
                if set(parts) < set(recorded):
                    mine = {id(leaf) for part in parts for leaf in part.leaves}
                    self._known[parts] = [leaf for leaf in order if id(leaf) in mine]
                    break
        return self._known.get(parts)

    def start_trace(self) -> None:
        """The coming forward is recorded."""
        self._traced = {}

    def trace(self, leaf: Leaf) -> None:
        """A leaf is about to run in a recorded forward."""
        self._traced.setdefault(id(leaf), leaf)

    def end_trace(self, parts: PartSet) -> None:
        """The recorded forward was completed; these parts took part in it."""
        if self._traced:
            self._known[parts] = list(self._traced.values())

    def set(self, parts: PartSet, order: Iterable[Leaf]) -> None:
        """It is that, without a record."""
        self._known[parts] = list(order)

    def lacks(self, parts: PartSet, leaf: Leaf) -> bool:
        """Whether the leaf is not in the recorded order."""
        return leaf not in (self._known.get(parts) or ())

    def forget(self, part: Part) -> None:
        """Its leaves are others now, or it is gone."""
        self._known = {parts: order for parts, order in self._known.items() if part not in parts}

    def needs_retrace(self, parts: PartSet) -> bool:
        """A forward had an unexpected leaf. Returns whether there were too many: the order is forgotten then."""
        self._unexpected_forwards += 1
        if self._unexpected_forwards < self._retrace_after:
            return False
        logger.info("%s: forwards run other layers than the first did; recording the order anew", self._name)
        self._unexpected_forwards = 0
        self._retrace_after *= 4
        self.forget(parts[0])
        return True
