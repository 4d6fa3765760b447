"""Binding: some leaves see their GPU tensors for a while, and what a forward changed meanwhile is brought home.

A leaf is switched by swapping the dictionaries that hold its parameters and buffers for their GPU twins: the CPU
`Parameter` objects stay untouched, whoever holds them. A leaf that is not bound carries a trap, a forward pre-hook;
a bound one carries none, so it costs nothing while it runs.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import nn

from .leaf import Contents, Leaf, Tensors, kept_strides

_version = attrgetter("_version")
_requires_grad = attrgetter("requires_grad")
_missing = object()


def twin_of(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """The GPU twin of a CPU parameter or buffer, over ``data``.

    It requires grad if the original does, though no gradient is ever wanted: `torch.matmul` looks at that flag to
    choose between two kernels whose low bits differ. ``data.data`` gives the twin a version counter of its own.
    """
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data.data, requires_grad=tensor.requires_grad)
    return data.data.requires_grad_(tensor.requires_grad)


def uploaded(leaf: Leaf, device: torch.device) -> dict[int, torch.Tensor]:
    """GPU twins of a leaf's tensors in memory of their own, copied in order with the compute; by id of the original."""
    twins = {}
    with torch.inference_mode(False), torch.no_grad():  # inference tensors count no versions
        for tensor in leaf.tensors():
            data = torch.empty_strided(tensor.shape, kept_strides(tensor), dtype=tensor.dtype, device=device)
            twins[id(tensor)] = twin_of(tensor, data.copy_(tensor.detach(), non_blocking=True))
    return twins


class Swap:
    """One module's ``_parameters`` or ``_buffers``: the CPU dictionary and its twin with GPU tensors."""

    __slots__ = ("attributes", "cpu", "expected", "gpu", "slot")

    def __init__(self, module: nn.Module, slot: str, twins: dict[int, torch.Tensor]) -> None:
        self.attributes = module.__dict__
        self.slot = slot
        self.cpu: Tensors = self.attributes[slot]
        self.expected: Tensors = {key: None if t is None else twins[id(t)] for key, t in self.cpu.items()}
        self.gpu: Tensors = type(self.cpu)(self.expected)


class Binding:
    """Some leaves' CPU and GPU dictionaries."""

    def __init__(self, leaves: list[Leaf], twins: dict[int, torch.Tensor]) -> None:
        """
        Args:
            leaves: what is bound together.
            twins: the GPU twin of every tensor of theirs, by id of the CPU tensor.
        """
        self._traps: list[tuple[Any, int, Any]] = [
            (leaf.module._forward_pre_hooks, leaf.key, leaf.trap) for leaf in leaves if leaf.trap
        ]
        self._swaps = [
            Swap(member, slot, twins)
            for leaf in leaves
            for member in leaf.members
            for slot in ("_parameters", "_buffers")
            if member.__dict__[slot]
        ]
        self._bound = [(swap.attributes, swap.slot, swap.gpu) for swap in self._swaps]
        self._unbound = [(swap.attributes, swap.slot, swap.cpu) for swap in self._swaps]
        self._contents = Contents(swap.gpu for swap in self._swaps)
        pairs = [(swap.cpu[k], t) for swap in self._swaps for k, t in swap.expected.items() if t is not None]
        self._masters = [master for master, _ in pairs if master is not None]
        self._twins = [twin for _, twin in pairs]
        self._slots = [twin.data for twin in self._twins]  # each twin's data while nobody has replaced it
        self._versions = list(map(_version, self._twins))
        self._grads = list(map(_requires_grad, self._twins))
        # Autocast keeps casts of such leaves until it ends, which would be a second copy of all weights on the GPU.
        self._cast_cached = any(twin.requires_grad and twin.dtype == torch.float32 for twin in self._twins)
        self._addresses: list[int] = []
        self.readdress()

    def readdress(self) -> None:
        """After the arena was allocated anew: its views followed by themselves, the remembered addresses did not."""
        self._addresses = list(map(torch.Tensor.data_ptr, self._slots))

    def bind(self) -> None:
        """The leaves see their GPU tensors, and carry no trap."""
        for attributes, slot, gpu in self._bound:
            attributes[slot] = gpu
        for hooks, key, _ in self._traps:
            hooks.pop(key, None)

    def unbind(self) -> None:
        """The leaves see their CPU tensors again, and carry the trap in front of other hooks."""
        for attributes, slot, cpu in self._unbound:
            attributes[slot] = cpu
        self.drop_casts()
        for hooks, key, trap in self._traps:
            others, hooks[key] = bool(hooks), trap
            if others:
                hooks.move_to_end(key, last=False)

    def drop_casts(self) -> None:
        """What autocast made of the twins is not kept."""
        if self._cast_cached:
            torch.clear_autocast_cache()

    @property
    def complete(self) -> bool:
        """Whether the leaves hold the very twins that were bound."""
        return self._contents.unchanged()

    @property
    def in_place(self) -> bool:
        """Whether every twin lies where it did."""
        return list(map(torch.Tensor.data_ptr, self._twins)) == self._addresses

    def untouched(self) -> bool:
        """Whether every twin, its version and its storage are as they were bound."""
        return self.complete and list(map(_version, self._twins)) == self._versions and self.in_place

    def collect(self, between: bool = False, all_of_it: bool = False) -> bool:
        """Brings home what was changed; to be called when `untouched` says no, before the slot is reused.

        In-place edits are written to the CPU tensors, which blocks. A storage that somebody swapped inside a forward
        (`Module.to`, as the host's manual cast does) is forgotten if nothing was written to it, else its data is kept.

        Args:
            between: the change was made between two forwards, so that a swapped storage is there to stay.
            all_of_it: there may be changes that left no trace.

        Returns:
            Whether the tensors still are the packed ones; False means the module must be packed anew.
        """
        same = True
        with torch.no_grad():
            for swap in self._swaps:
                for key in {**swap.expected, **swap.gpu}:
                    now = swap.gpu.get(key, _missing)
                    if now is not swap.expected.get(key, _missing):
                        _adopt(swap.cpu, key, now)
                        same = False
                swap.gpu.clear()
                swap.gpu.update(swap.expected)
            for place, twin in enumerate(self._twins):
                moved = twin.data_ptr() != self._addresses[place]
                if all_of_it or twin._version != self._versions[place] or (between and moved):
                    same &= self._collect_one(place, between)
                if moved:
                    twin.data = self._slots[place]
        return same

    def _collect_one(self, place: int, between: bool) -> bool:
        master, data, slot = self._masters[place], self._twins[place].data, self._slots[place]
        self._versions[place] = self._twins[place]._version
        strides_hold = not between or data.stride() == slot.stride()
        if data.dtype != slot.dtype or data.shape != slot.shape or not strides_hold:
            master.data = data.cpu()
            return False
        master.data.copy_(data)
        if data.data_ptr() != slot.data_ptr():
            slot.copy_(data)
        return True

    def collect_grads(self) -> None:
        """Whoever changed whether a twin requires grad meant the original."""
        for master, twin, before in zip(self._masters, self._twins, self._grads, strict=True):
            if twin.requires_grad != before:
                master.requires_grad_(twin.requires_grad)


def _adopt(cpu: Tensors, key: str, now: object) -> None:
    """A forward registered, replaced or removed a tensor: the CPU dictionary does the same."""
    if now is _missing:
        cpu.pop(key, None)
    elif now is None:
        cpu[key] = None
    else:
        assert isinstance(now, torch.Tensor)
        now.data = now.data.cpu()
        cpu[key] = now
