"""Loads on demand: a leaf whose unit is not there is loaded on the spot, so that any order is right, if slower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lib_async_mover.memory.leaf import Leaf
from lib_async_mover.run.binding import Binding, Twins, uploaded
from lib_async_mover.run.forward_scope import ForwardScope, call_frame
from lib_async_mover.run.hooks import Hook


class OnDemand:
    """At most one leaf, beside those that are bound for a whole forward. Copies run on the compute stream, in order
    with everything."""

    def __init__(self, device: torch.device, replaced: Callable[[Leaf], None]) -> None:
        """``replaced`` is called when a forward replaced a tensor of a leaf, so that it must be packed anew."""
        self._device = device
        self._replaced = replaced
        self._kept: list[tuple[Leaf, Binding]] = []
        self._loaded: tuple[Leaf, Binding] | None = None
        self._call_hooks: list[Any] = []
        self._part = ForwardScope()
        self.loads = 0  # of leaves, since ever
        self.forward_bytes = 0  # of what was loaded in this forward, or in the last

    def keep(self, leaf: Leaf) -> Twins:
        """Loads and binds the leaf until `unload_all`. Returns its GPU twins."""
        self.unload()
        bound, twins = self._bound(leaf)
        self._kept.append((leaf, bound))
        return twins

    def load(self, leaf: Leaf) -> Twins:
        """Loads and binds the leaf, in memory of its own, until `unload`. Returns its GPU twins."""
        self.unload()
        self.loads += 1
        bound, twins = self._bound(leaf)
        self._loaded = leaf, bound
        return twins

    def unload(self) -> None:
        """Unbinds the leaf, if there is one, and brings home what was changed."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._unbind(*loaded)

    def unload_all(self) -> None:
        """Nothing is bound afterwards."""
        self.unload()
        while self._kept:
            self._unbind(*self._kept.pop())

    def load_for_call(self, leaf: Leaf, module: nn.Module, stands: bool) -> None:
        """Loads the leaf outside a forward of the root, until the call of ``module`` is over.

        What stands is read between the calls of other leaves, so it stays beside them.
        """
        if stands:
            self.keep(leaf)
            self._part.push(call_frame())
        else:
            self.load(leaf)
        # The hook cannot remove itself: after an exception torch iterates over the very dictionary.
        after = Hook(self._after_part if stands else self._after_leaf)
        self._call_hooks.append(module.register_forward_hook(after, always_call=True))

    def _after_leaf(self, module: nn.Module, args: tuple, result: Any) -> None:
        self.unload()

    def _after_part(self, module: nn.Module, args: tuple, result: Any) -> None:
        self._part.close()
        self.unload_all()

    @property
    def part_running(self) -> bool:
        """A module with standing tensors is being called outside a forward of the root."""
        return self._part.running

    def end_calls(self) -> None:
        """Removes the hooks of calls outside a forward of the root, and what they left behind."""
        self._part.close()
        if self._call_hooks:
            self.unload_all()
            for handle in self._call_hooks:
                handle.remove()
            self._call_hooks = []

    def _bound(self, leaf: Leaf) -> tuple[Binding, Twins]:
        twins = uploaded(leaf, self._device)
        binding = Binding([leaf], twins)
        binding.bind()
        self.forward_bytes += leaf.bytes()
        return binding, twins

    def _unbind(self, leaf: Leaf, binding: Binding) -> None:
        binding.unbind()
        if not binding.untouched() and not binding.write_back():
            self._replaced(leaf)
