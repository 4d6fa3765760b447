"""The joint store: host stores of a module and its guests, seen as one sequence of leaves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lib_async_mover.memory.host_store import HostStore
from lib_async_mover.memory.leaf import Leaf


class JointStore:
    """Leaves in execution order, whichever store they lie in. The stores stay as they are."""

    def __init__(self, order: Sequence[Leaf], stores: Sequence[HostStore]) -> None:
        self.order = order
        self.stores = stores
        self.store_of = {key: store for store in stores for key in store.places}  # by id of the leaf
        self.places = {key: place for store in stores for key, place in store.places.items()}
        places = [self.places[id(leaf)] for leaf in order]
        self.leaf_bytes = [place.bytes for place in places]
        # A unit is one copy, so its leaves lie one after the other.
        self.barriers = frozenset(
            index
            for index, (before, place) in enumerate(pairwise(places), 1)
            if before.span is not place.span or before.offset + before.bytes != place.offset
        )
        self.standing = [store.standing for store in stores if store.standing.refs]
        self.standing_bytes = sum(self.places[id(leaf)].bytes for leaf in self.standing)
        self.bytes = sum(store.bytes for store in stores)
        self.pinned_bytes = sum(store.pinned_bytes for store in stores)
        self.seconds = sum(store.seconds for store in stores)  # that packing took
