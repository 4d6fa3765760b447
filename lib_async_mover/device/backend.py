"""How weights move: one copy stream beside the compute, and the fences between the two.

[Note: the overlap] Copies run in order on the copy stream, kernels in order on the compute stream. Four waits keep
them apart, and each is a method here, so that a backend can be checked for them:

1. `wait_for_copy`: the compute waits until the copy into a slot has ended before it reads the slot.
2. `copy(after=…)`: the copy stream waits until the compute that last read an overlapping slot has ended.
3. `fence_copies`: the copy stream waits for the compute before it writes into memory newly taken from the allocator,
   which kernels still queued may be using for something else.
4. `fence_compute`: the compute waits for the copy stream before the arena goes back to the allocator, which hands it
   out again in the order of the compute stream.

A fence travels with what it is about (as in FSDP2's `AllGatherResult`): `copy` returns the `Copy` that `wait_for_copy`
and `release` take, and `release` returns what `copy(after=…)` takes. The host never blocks in a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

Done = Any  # fence: the compute that read a slot has ended
Mark = Any  # a point on a timeline, resolved later without blocking
TimedCopies = list[tuple[int, Mark, Mark]]  # bytes, start, end


@dataclass(eq=False)
class Copy:
    """One copy, and the fence of exactly this one: a later copy into the same slot has another."""

    __slots__ = ("source", "target", "ready", "issued")

    source: torch.Tensor  # shape (bytes,), uint8, host
    target: torch.Tensor  # shape (bytes,), uint8, a view of the arena
    ready: Any  # fence: the copy has ended
    issued: Future | None  # where another thread issues it: until then, `ready` means nothing


class Backend(ABC):
    """The two streams of one mover. All calls come from the thread that runs the forward, unless said otherwise."""

    device: torch.device
    waits_block = False  # `wait_for_copy` blocks the host
    # Page-locks (address, bytes) in place; returns what undoes it, None if refused. None where there is no need.
    page_lock: Callable[[int, int], Callable[[], None] | None] | None = None

    @abstractmethod
    def use_current_stream(self) -> bool:
        """The caller's current stream is the compute stream until the next call. True if it is another one."""

    @abstractmethod
    def copy(self, source: torch.Tensor, target: torch.Tensor, pinned: bool, after: Done | None) -> Copy:
        """Issues a copy of host bytes, page-locked if ``pinned``, into a slot.

        ``after`` is what `release` returned for the compute that read the slot's memory last; None if nobody did.
        """

    @abstractmethod
    def wait_for_copy(self, copy: Copy) -> None:
        """The compute waits for exactly this copy. Raises what kept it from being issued."""

    @abstractmethod
    def release(self, copy: Copy) -> Done:
        """The compute issued so far is the last to read the copy's slot."""

    @abstractmethod
    def fence_copies(self) -> None:
        """Copies issued from now on wait for the compute issued so far."""

    @abstractmethod
    def fence_compute(self) -> None:
        """Compute issued from now on waits for the copies issued so far."""

    @abstractmethod
    def synchronize(self) -> None:
        """The host waits for all copies. From any thread."""

    def memory_taken(self, raw: torch.Tensor) -> None:  # noqa: B027
        """Slots lie in ``raw`` from now on, shape (n,), uint8; `fence_copies` comes before the first copy."""

    def memory_freed(self) -> None:  # noqa: B027
        """It is about to go back to the allocator; `fence_compute` came before."""

    @abstractmethod
    def close(self) -> None:
        """Waits for all copies and ends threads. The backend is not used again."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Memory of the device that nobody has taken, in bytes."""

    def total_bytes(self) -> int:
        """All memory of the device."""
        return self.free_bytes()

    def cached_bytes(self) -> int:
        """Memory that torch has taken and nobody uses."""
        return 0

    def empty_cache(self) -> None:  # noqa: B027
        """Torch gives the device back what nobody uses. Waits for the device."""

    # Timing, for profiles

    @abstractmethod
    def mark_compute(self) -> Mark:
        """A mark on the compute's timeline."""

    @abstractmethod
    def time_copies(self, into: TimedCopies | None) -> None:
        """Copies issued from now on add themselves to ``into``; None ends it."""

    @abstractmethod
    def passed(self, mark: Mark) -> bool:
        """Whether the timeline is past the mark; never blocks."""

    @abstractmethod
    def elapsed_ms(self, start: Mark, end: Mark) -> float:
        """Milliseconds between two marks that have `passed`."""
