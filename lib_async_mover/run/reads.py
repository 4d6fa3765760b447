"""What a traced forward reads of its weights from outside the call of the leaf that owns them.

A hook sees that a leaf is called, and nothing else. A dispatch mode sees every operation (as `FakeTensorMode` does), so
while a forward is traced it finds `F.linear(x, self.other.weight)`, a `ParameterList`, a view of a weight that is used
after other leaves. Whatever is found stands from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import lru_cache, partial
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_flatten

from lib_async_mover.errors import UnsupportedModuleError
from lib_async_mover.memory.leaf import Leaf
from lib_async_mover.run.binding import Twins

DEVICE = torch.Tensor.device.__get__


class _DeviceQuestions(TorchFunctionMode):
    """Where a host tensor lies is asked for the inputs to be brought there: the answer is the GPU."""

    def __init__(self, twin_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._twin_of = twin_of

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == DEVICE:
            args = (self._twin_of(args[0]),)
        return func(*args, **(kwargs or {}))


class ReadRecorder(TorchDispatchMode):
    """Found are leaves of which an operation reads a host tensor, or is asked where one lies, or reads GPU memory after
    another leaf was loaded, and those of which somebody still holds such memory when the forward is over.

    On a GPU the host tensor would be on the wrong device: the operation gets the GPU twin instead.
    """

    def __init__(self, leaves: Iterable[Leaf], standing: Collection[Leaf], bind: Callable[[Leaf], Twins]) -> None:
        """``bind`` binds a leaf until the forward is over, and returns its GPU twins by id of the host tensors."""
        super().__init__()
        self.found: dict[int, Leaf] = {}
        self._bind = bind
        self._standing = standing
        # By id, with the tensor: one that a forward replaces must not leave its id to another.
        self._owner = {id(tensor): (leaf, tensor) for leaf in [*leaves, *standing] for tensor in leaf.tensors()}
        self._twins: dict[int, Twins] = {}  # of what was found, by id of the leaf
        self._memory: dict[int, tuple[StorageWeakRef, Leaf]] = {}  # of GPU twins, by address of the storage object
        self._loaded: Leaf | None = None
        self._active = False
        self._questions = _DeviceQuestions(partial(self._seen, transfer=False, writes=False))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import all of torch._dynamo, which takes a second

    def start(self) -> None:
        """Records what this thread does from now on."""
        self._active = True
        self.__enter__()
        self._questions.__enter__()

    def stop(self) -> None:
        """Records no more. A mode that somebody else left on top of these keeps them in place, without effect."""
        if self._active and _get_current_function_mode() is self._questions:
            self._questions.__exit__(None, None, None)
        if self._active and _get_current_dispatch_mode() is self:
            self.__exit__(None, None, None)
        self._active = False

    def load(self, leaf: Leaf, load: Callable[[Leaf], Twins]) -> None:
        """``load`` binds the leaf and returns its twins; what it reads itself does not count."""
        self._active, active = False, self._active
        twins = load(leaf)
        self._active = active
        self._loaded = leaf
        for twin in twins.values():
            storage = twin.untyped_storage()
            self._memory[storage._cdata] = StorageWeakRef(storage), leaf

    def note_held(self, result: Any) -> None:
        """The forward is over, and returned ``result``: who holds memory of a twin now holds it for good."""
        if torch.is_grad_enabled():  # then autograd may be who: only what is returned can be told
            for value in tree_flatten(result)[0]:
                if isinstance(value, torch.Tensor):
                    self._note_late(value, None)
        else:
            self.found.update({id(leaf): leaf for weak, leaf in self._memory.values() if not weak.expired()})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _makes_view(func):  # a view alone reads nothing
            transfer, writes = _is_transfer(func, kwargs), func._schema.is_mutable
            args = [self._replaced(value, transfer, writes) for value in args]
            kwargs = {key: self._replaced(value, transfer, writes) for key, value in kwargs.items()}
        return func(*args, **kwargs)

    def _replaced(self, value: Any, transfer: bool, writes: bool) -> Any:
        """An argument of an operation: a tensor, a list of some, or none of these."""
        if isinstance(value, torch.Tensor):
            return self._seen(value, transfer, writes)
        if isinstance(value, (list, tuple)):
            return [self._replaced(one, transfer, writes) for one in value]
        return value

    def _seen(self, tensor: torch.Tensor, transfer: bool, writes: bool) -> torch.Tensor:
        """An operation reads the tensor, or ``writes`` to it: returns what it is to take instead."""
        if not self._active:
            return tensor
        known = self._owner.get(id(tensor)) or self._owner.get(id(tensor._base))
        if known is None:
            self._note_late(tensor, self._loaded)
            return tensor
        leaf, host = known
        twin = None if transfer else self._twins_of(leaf, host).get(id(host))
        if twin is None:
            return tensor
        if writes:
            torch.autograd.graph.increment_version(twin)  # a mode is below what counts versions
        offset = tensor.storage_offset() - host.storage_offset()
        return twin if tensor is host else twin.as_strided(tensor.shape, tensor.stride(), offset)

    def _twins_of(self, leaf: Leaf, host: torch.Tensor) -> Twins:
        if leaf in self._standing:
            raise UnsupportedModuleError(
                "a forward reads the weights of a layer that was bound to the device through references of its own, "
                f"which cannot be exchanged: a tensor of shape {tuple(host.shape)}. Such a module cannot be streamed"
            )
        if id(leaf) not in self._twins:
            self.found[id(leaf)] = leaf
            self._twins[id(leaf)] = self._bind(leaf)
        return self._twins[id(leaf)]

    def _note_late(self, tensor: torch.Tensor, loaded: Leaf | None) -> None:
        """Memory of a twin whose leaf is not the loaded one is read, or will be."""
        try:
            known = self._memory.get(tensor.untyped_storage()._cdata)
        except NotImplementedError:  # none of ours: sparse, or batched by vmap
            return
        if known is not None and known[1] is not loaded:
            self.found[id(known[1])] = known[1]


@lru_cache(maxsize=None)
def _makes_view(func: Any) -> bool:
    returns = [value.alias_info for value in func._schema.returns]
    return bool(returns) and all(alias is not None and not alias.is_write for alias in returns)


def _is_transfer(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a host tensor may be what it copies from: it is right from wherever that lies."""
    return func is torch.ops.aten.copy_.default or (
        func is torch.ops.aten._to_copy.default and torch.device(kwargs.get("device") or "cpu").type != "cpu"
    )
