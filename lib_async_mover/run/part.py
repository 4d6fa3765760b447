"""A part: one module whose weights stream, the root or a guest. Its leaves, and where they are packed."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable

from torch import nn

from lib_async_mover.memory.host_store import HostStore, PageLock
from lib_async_mover.memory.leaf import Leaf, find_leaves, own_memory
from lib_async_mover.run.hooks import Hook, inert

logger = logging.getLogger("async_lowvram")


LoadHookFor = Callable[["Part", Leaf], Hook]


class Part:
    """Leaves with their load hooks, and their host store once they are packed.

    Keeps neither its module alive nor, being reached from a guest's hooks, the mover.
    """

    def __init__(
        self, name: str, module: nn.Module, load_hook_for: LoadHookFor, when_gone: Callable[[], None] | None = None
    ) -> None:
        """
        Args:
            load_hook_for: makes the forward pre-hook that a leaf carries while it is not bound.
            when_gone: called when a guest is no more; the root has none.

        Raises UnsupportedModuleError; nothing was changed then.
        """
        self.name = name
        self.is_guest = when_gone is not None
        self.store: HostStore | None = None
        self.leaves: list[Leaf] = []
        self.standing = Leaf("", [])
        gone = None if when_gone is None else weakref.WeakMethod(when_gone)
        self._module = weakref.ref(module, None if gone is None else lambda _: (gone() or inert)())
        self._read_aside: set[int] = set()  # ids of modules that were seen to be read from outside their call
        self.find_leaves(load_hook_for)

    @property
    def module(self) -> nn.Module | None:
        """None once it is gone."""
        return self._module()

    def find_leaves(self, load_hook_for: LoadHookFor) -> bool:
        """Looks at the modules anew. Whether the leaves are still the same modules, and so the same objects."""
        module = self.module
        if module is None:
            return False
        leaves, standing = find_leaves(module, self._read_aside)
        own_memory(module)
        self.remove_hooks()
        before = {leaf.refs: leaf for leaf in self.leaves}
        if self.is_guest:
            for leaf in leaves:
                leaf.name = f"{self.name}/{leaf.name}"
        self.leaves, self.standing = [before.get(leaf.refs, leaf) for leaf in leaves], standing
        for leaf in self.leaves:
            _put_hook(load_hook_for(self, leaf), leaf, [leaf.module])
        # The root's own hook binds what stands; a guest's tells that it runs.
        modules = {*standing.members, module} if self.is_guest else {*standing.members} - {module}
        _put_hook(load_hook_for(self, standing), standing, modules)
        return {leaf.refs for leaf in leaves} == set(before)

    def remove_hooks(self) -> None:
        """Leaves carry nothing of ours any more."""
        for leaf in [*self.leaves, self.standing]:
            for hooks, key, _ in leaf.hooks:
                hooks.pop(key, None)
            leaf.hooks = []

    def note_read_aside(self, leaves: Iterable[Leaf]) -> None:
        """These stand from the next `find_leaves` on."""
        self._read_aside |= {id(leaf.module) for leaf in leaves}

    def pack(self, order: Iterable[Leaf], page_lock: PageLock | None) -> HostStore:
        """The weights are in page-locked RAM afterwards, those in ``order`` first; leaves of others there are ignored.

        Returns where. The module must be there.
        """
        if self.store is None:
            module, mine = self.module, {id(leaf): leaf for leaf in self.leaves}
            assert module is not None
            known = [leaf for leaf in order if mine.pop(id(leaf), None) is not None]
            self.store = store = HostStore(module, known, list(mine.values()), self.standing, page_lock)
            logger.info(
                "%s: %d MiB of weights packed in %.1f s, %d MiB of page-locked RAM",
                self.name, store.bytes >> 20, store.seconds, store.pinned_bytes >> 20,
            )  # fmt: skip
        return self.store

    def still_packed(self, all_in_place: bool) -> bool:
        """Whether its tensors are the packed ones, as far as the pipeline does not look before it binds.

        ``all_in_place``: whether each is looked at, as where something is bound before a leaf is called.
        """
        store = self.store
        if store is None or not store.still_packed():
            return store is None
        return store.in_place() if all_in_place or store.standing.refs else True

    def unpack(self, unpin: bool = False) -> None:
        """The packed tensors are no longer the module's. Unlocks their pages if ``unpin``; no copy may be in flight."""
        store, self.store = self.store, None
        if unpin and store is not None:
            store.unpin()


def _put_hook(hook: Hook, leaf: Leaf, modules: Iterable[nn.Module]) -> None:
    for module in modules:
        key = module.register_forward_pre_hook(hook, prepend=True).id
        leaf.hooks.append((module._forward_pre_hooks, key, hook))
