"""The parts: the root and its guests, which of them are expected to run, and a placement for each set that does.

A guest is a module that other code runs inside the root's forward, in some of them only (a ControlNet). Its leaves are
traced and planned with the root's, and share the arena; each part has a host store of its own, so a guest that comes
or goes touches no other's. Sets that run in turns have their own orders and profiles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence

from torch import nn

from lib_async_mover.device.backend import Backend
from lib_async_mover.errors import AsyncMoverError
from lib_async_mover.memory.leaf import Leaf, find_leaves
from lib_async_mover.run.forward_scope import Signature
from lib_async_mover.run.hooks import refuse_attached
from lib_async_mover.run.on_demand import OnDemand
from lib_async_mover.run.order import Order, PartSet
from lib_async_mover.run.part import LoadHookFor, Part
from lib_async_mover.run.placement import Placement

logger = logging.getLogger("async_lowvram")

IDLE_FORWARDS = 2  # that a guest did not run in, before it is not expected any more: more than when it takes turns


class Parts:
    """What a mover streams. Not thread-safe: the mover locks."""

    def __init__(
        self, name: str, module: nn.Module, backend: Backend, whole: bool, load_hook_for: LoadHookFor,
        when_gone: Callable[[], None],
    ) -> None:  # fmt: skip
        """See `Part`."""
        self._name = name
        self._backend = backend
        self.whole = whole
        self._load_hook_for = load_hook_for
        self._when_gone = when_gone
        self.root = Part(name, module, load_hook_for)
        self._guests: list[Part] = []
        self._idle: dict[Part, int] = {}  # forwards in a row that a guest did not run in
        self._ran: set[Part] = set()  # guests, in the present forward or the last
        self.order = Order(name)
        self.set: PartSet = (self.root,)  # that the present placement is for
        self.placement = Placement(name, self.set, backend, whole)
        self._placements: dict[PartSet, Placement] = {self.set: self.placement}
        if whole:
            self.order.set(self.set, self.root.leaves)

    @property
    def all(self) -> PartSet:
        """The root, and guests that are still there."""
        return (self.root, *(guest for guest in self._guests if guest.module is not None))

    @property
    def guests(self) -> list[nn.Module]:
        return [module for guest in self._guests if (module := guest.module) is not None]

    @property
    def guest_parts(self) -> list[Part]:
        return [part for part in self.all if part.is_guest]

    @property
    def oom_retries(self) -> int:
        """Times that a buffer was halved because memory ran out in a forward."""
        return sum(placement.buffer.oom_retries for placement in self._placements.values())

    @property
    def leaves(self) -> list[Leaf]:
        """Of all parts, but for what stands."""
        return [leaf for part in self.all for leaf in part.leaves]

    def set_guests(self, modules: Sequence[nn.Module]) -> None:
        """These and no others, from the next forward on. Between forwards.

        Raises AsyncMoverError or UnsupportedModuleError if one cannot be a guest; nothing was changed then.
        """
        before = self.guests
        if len(before) == len(modules) and all(module in before for module in modules):
            return
        new = [module for module in dict.fromkeys(modules) if module not in before]
        self._refuse(new)
        self._drop([guest for guest in self._guests if guest.module not in modules])
        for module in new:
            kinds = [type(guest.module).__name__ for guest in self._guests]
            count = kinds.count(type(module).__name__)
            name = f"{type(module).__name__} {count + 1}" if count else type(module).__name__
            self._guests.append(Part(name, module, self._load_hook_for, self._when_gone))
        self._idle.clear()

    def _refuse(self, modules: Iterable[nn.Module]) -> None:
        if self.whole:
            raise AsyncMoverError(f"{self._name}: it is moved as a whole, so it can have no guests")
        taken = {id(tensor) for part in self.all for leaf in [*part.leaves, part.standing] for tensor in leaf.tensors()}
        inside: set[int] = set()
        for module in modules:
            name = type(module).__name__
            refuse_attached(module)
            leaves, standing = find_leaves(module)
            tensors = {id(tensor) for leaf in [*leaves, standing] for tensor in leaf.tensors()}
            parts = set(map(id, module.modules()))
            if not leaves or tensors & taken or parts & inside:
                raise AsyncMoverError(
                    f"{name}: expected a guest with weights of its own; found "
                    + ("some that the root or another guest has" if leaves else "no layers to stream")
                )
            taken |= tensors
            inside |= parts

    def drop_gone(self) -> None:
        """Guests that nobody has any more are forgotten. Between forwards."""
        self._drop([guest for guest in self._guests if guest.module is None])

    def _drop(self, guests: Collection[Part]) -> None:
        """They are guests no more; their weights are ordinary CPU tensors."""
        for guest in guests:
            self._guests.remove(guest)
            self._idle.pop(guest, None)
            self._ran.discard(guest)
            self.unpack(guest, unpin=True)
            guest.remove_hooks()
            self.order.forget(guest)
            for parts in [parts for parts in self._placements if guest in parts]:
                del self._placements[parts]
        if self.set not in self._placements:
            self._choose((self.root,))

    def choose(self) -> None:
        """The placement is the one for the parts that are expected to run in the coming forward."""
        expected = (part for part in self.all if self._idle.get(part, 0) < IDLE_FORWARDS)
        self._choose(tuple(expected))
        self._ran = set()

    def _choose(self, parts: PartSet) -> None:
        if parts == self.set:
            return
        before = self.placement
        before.release()
        self.set = parts
        if parts not in self._placements:
            self._placements[parts] = Placement(self._name, parts, self._backend, self.whole, before)
        self.placement = self._placements[parts]

    def fits(self) -> bool:
        """Whether a whole module fits, or is there."""
        return self.placement.held_bytes > 0 or self.placement.buffer.fits(self.root.bytes())

    def stream(self) -> None:
        """A whole module that does not fit streams from now on, in the order of a forward that is traced."""
        self.whole = self.placement.whole = False
        self.unpack(self.root)
        self.order.forget(self.root)

    def pack(self, names: Sequence[str]) -> None:
        """The root is packed now, its leaves of these names first."""
        by_name = {leaf.name: leaf for leaf in self.root.leaves}
        order = self.order.of(self.set) or [by_name[name] for name in names if name in by_name]
        self.root.pack(order, self._backend.page_lock, ahead=not self.whole)

    def unpack_changed(self, vram_mb: float, signature: Signature) -> None:
        """What is no longer packed is to be packed anew before the coming forward."""
        for part in self.placement.changed(vram_mb, signature):
            self._look_again(part)

    def _look_again(self, part: Part) -> None:
        """Unpacks the part and looks at its modules anew. Orders stay known if its leaves are the same modules."""
        self.unpack(part)
        if not part.find_leaves(self._load_hook_for):
            self.order.forget(part)
            if self.whole:
                self.order.set(self.set, part.leaves)

    def unpack(self, part: Part, unpin: bool = False) -> None:
        """Its packed tensors are no longer the module's: what was made of them is to be made anew."""
        for parts, placement in self._placements.items():
            if part in parts:
                placement.unpack()
        self._backend.synchronize()  # a copy in flight reads from RAM that goes with the store
        part.unpack(unpin)

    def note_run(self, part: Part) -> bool:
        """A guest runs in this forward. Whether that is news."""
        if not part.is_guest or part in self._ran:
            return False
        self._ran.add(part)
        return True

    def end_forward(self, unexpected: bool) -> None:
        """A forward was completed: guests that ran are expected in the next. ``unexpected``: a leaf was."""
        for guest in self._guests:
            self._idle[guest] = 0 if guest in self._ran else self._idle.get(guest, 0) + 1
        if unexpected and self.order.needs_retrace(self.set):
            for part in self.set:
                self._look_again(part)

    def end_trace(self, read_aside: Collection[Leaf]) -> None:
        """A recorded forward was completed. If leaves were ``read_aside`` of their call, another one is recorded."""
        if not read_aside:
            self._idle = {guest: 0 if guest in self._ran else IDLE_FORWARDS for guest in self._guests}
            parts = tuple(part for part in self.all if part is self.root or part in self._ran)
            self.order.end_trace(parts)
            for part in parts:
                if not part.packed_in(self.order.of(parts) or []):
                    self.unpack(part)
            return
        logger.info(
            "%s: %d layers are read from outside their call, %s for one; they stay on the device while it runs",
            self._name, len(read_aside), next(iter(read_aside)).name,
        )  # fmt: skip
        for part in self.all:
            mine = [leaf for leaf in read_aside if leaf in part.leaves]
            if mine:
                part.note_read_aside(mine)
                self._look_again(part)

    def keep_standing(self, on_demand: OnDemand) -> None:
        """What stands of any part is bound for the forward that begins, wherever it may be read."""
        for part in self.all:
            on_demand.keep(part.standing)

    def tensors_replaced(self, leaf: Leaf) -> None:
        """A forward replaced a tensor of the leaf."""
        for part in self.all:
            if part.store is not None and id(leaf) in part.store.places:
                part.store.intact = False

    def close(self) -> None:
        """Nothing of ours is left on the modules, and they are in ordinary RAM. Between forwards."""
        self._drop(list(self._guests))
        self.unpack(self.root, unpin=True)
        self.root.remove_hooks()
