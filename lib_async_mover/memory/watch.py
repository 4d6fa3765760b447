"""Whether a module's tensors are still the ones that were seen last, told in a few calls for all of them together."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from operator import attrgetter, is_

import torch

_version = attrgetter("_version")
_requires_grad = attrgetter("requires_grad")
_END = object()


class DictWatch:
    """What some dictionaries hold now, so that any other object in them is seen later.

    One call lists what all of them refer to: a forward has put everything out of the CPU's caches, so what counts is
    how many places in memory are looked at, and after that how many calls there are.
    """

    def __init__(self, dicts: Iterable[dict]) -> None:
        # Those that hold nothing come behind a mark: an object that goes there is seen even if all else stays in order.
        filled: list[dict] = []
        empty: list[dict] = []
        for held in dicts:
            (filled if held else empty).append(held)
        self._dicts = (*filled, {"": _END}, *empty)
        self._expected = gc.get_referents(*self._dicts)

    def unchanged(self) -> bool:
        """Whether the dictionaries hold these very objects."""
        now = gc.get_referents(*self._dicts)
        return len(now) == len(self._expected) and all(map(is_, now, self._expected))


class TensorWatch:
    """Some dictionaries of tensors: which objects they hold, where those lie, and whether somebody wrote to them.

    Writes through ``.data``, by `native_batch_norm` and by fused optimizers raise no version and are not seen.
    """

    def __init__(self, dicts: Iterable[dict], tensors: Sequence[torch.Tensor]) -> None:
        """``tensors`` are what the dictionaries hold, to be told apart by their place."""
        self.tensors = list(tensors)
        self._dicts = DictWatch(dicts)
        self._addresses: list[int] = []
        self._grads = list(map(_requires_grad, self.tensors))
        self.mark()
        self.readdress()

    def mark(self) -> None:
        """What was written up to now counts no more."""
        self._versions = list(map(_version, self.tensors))

    def readdress(self) -> None:
        """The memory under the tensors was allocated anew."""
        self._addresses = list(map(torch.Tensor.data_ptr, self.tensors))

    def in_place(self) -> bool:
        """Whether tensor objects, their storages and their `requires_grad` are those of before.

        False after a new or removed parameter, `.half()`, `.to("cuda")`, `load_state_dict(assign=True)` and the like.
        """
        return (
            self._dicts.unchanged()
            and list(map(torch.Tensor.data_ptr, self.tensors)) == self._addresses
            and list(map(_requires_grad, self.tensors)) == self._grads
        )

    def is_written(self) -> bool:
        """Whether a tensor was written to in place since the last `mark` (`copy_`, `add_`, …)."""
        return list(map(_version, self.tensors)) != self._versions

    def untouched(self) -> bool:
        """Whether all are in place, and none was written to."""
        return not self.is_written() and self.in_place()

    def moved(self, place: int) -> bool:
        """Whether tensor number ``place`` lies in other memory than before."""
        return self.tensors[place].data_ptr() != self._addresses[place]

    def written(self) -> list[int]:
        """Places of the tensors that were written to since the last `mark`."""
        return [place for place, before in enumerate(self._versions) if self.tensors[place]._version != before]
