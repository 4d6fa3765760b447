"""Binding: some leaves see their GPU tensors for a while, and what a forward changed meanwhile is written back.

A leaf is switched by exchanging the dictionaries that hold its parameters and buffers for those with their GPU twins:
the CPU `Parameter` objects stay untouched, whoever holds them. A leaf that is not bound carries a load hook, a forward
pre-hook; a bound one carries none, so it costs nothing while it runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lib_async_mover.memory.leaf import Leaf, Tensors, kept_strides
from lib_async_mover.memory.watch import TensorWatch

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

    __slots__ = ("attributes", "cpu", "expected", "gpu", "name")

    def __init__(self, module: nn.Module, name: str, twins: dict[int, torch.Tensor]) -> None:
        self.attributes = module.__dict__
        self.name = name
        self.cpu: Tensors = self.attributes[name]
        self.expected: Tensors = {key: None if t is None else twins[id(t)] for key, t in self.cpu.items()}
        self.gpu: Tensors = type(self.cpu)(self.expected)


class Binding:
    """Some leaves' CPU and GPU dictionaries, exchanged together."""

    def __init__(self, leaves: list[Leaf], twins: dict[int, torch.Tensor]) -> None:
        """``twins`` has the GPU twin of every tensor of theirs, by id of the CPU tensor."""
        self._hooks: list[tuple[Any, int, Any]] = [
            (leaf.module._forward_pre_hooks, leaf.hook_key, leaf.load_hook) for leaf in leaves if leaf.load_hook
        ]
        self._swaps = [
            Swap(member, name, twins)
            for leaf in leaves
            for member in leaf.members
            for name in ("_parameters", "_buffers")
            if member.__dict__[name]
        ]
        self._gpu = [(swap.attributes, swap.name, swap.gpu) for swap in self._swaps]
        self._cpu = [(swap.attributes, swap.name, swap.cpu) for swap in self._swaps]
        pairs = [(swap.cpu[k], t) for swap in self._swaps for k, t in swap.expected.items() if t is not None]
        self._originals = [original for original, _ in pairs if original is not None]
        self._watch = TensorWatch((swap.gpu for swap in self._swaps), [twin for _, twin in pairs])
        self._slots = [twin.data for _, twin in pairs]  # each twin's data while nobody has replaced it
        # Autocast keeps casts of such leaves until it ends, which would be a second copy of all weights on the GPU.
        self._cast_cached = any(twin.requires_grad and twin.dtype == torch.float32 for _, twin in pairs)
        self.readdress = self._watch.readdress  # after the arena was allocated anew under its views
        self.untouched = self._watch.untouched  # whether every twin, its version and its storage are as they were bound

    def bind(self) -> None:
        """The leaves see their GPU tensors, and carry no load hook."""
        for attributes, name, gpu in self._gpu:
            attributes[name] = gpu
        for hooks, key, _ in self._hooks:
            hooks.pop(key, None)

    def unbind(self) -> None:
        """The leaves see their CPU tensors again, and carry the load hook in front of other hooks."""
        for attributes, name, cpu in self._cpu:
            attributes[name] = cpu
        if self._cast_cached:
            torch.clear_autocast_cache()
        for hooks, key, load_hook in self._hooks:
            others, hooks[key] = bool(hooks), load_hook
            if others:
                hooks.move_to_end(key, last=False)

    def write_back(self) -> bool:
        """Brings home what was changed; to be called when `untouched` says no, before the slot is reused.

        In-place edits are written to the CPU tensors, which blocks. A storage that somebody swapped inside a forward
        (`Module.to`, as the host's manual cast does) is forgotten if nothing was written to it, else its data is kept.

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
            for place in self._watch.written():
                same &= self._write_back_one(place)
            for place, (original, twin) in enumerate(zip(self._originals, self._watch.tensors, strict=True)):
                if self._watch.moved(place):
                    twin.data = self._slots[place]
                if twin.requires_grad != original.requires_grad:
                    original.requires_grad_(twin.requires_grad)
                    same = False
        return same

    def _write_back_one(self, place: int) -> bool:
        original, data, slot = self._originals[place], self._watch.tensors[place].data, self._slots[place]
        if data.dtype != slot.dtype or data.shape != slot.shape:
            original.data = data.cpu()
            return False
        original.data.copy_(data)
        if data.data_ptr() != slot.data_ptr():
            slot.copy_(data)
        return True


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
