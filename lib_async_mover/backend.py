"""How weights move: one copy stream beside the compute, and the fences between the two.

[Note: the overlap] Copies run in order on the copy stream, kernels in order on the compute stream. Four waits keep
them apart, and each is a method here, so that a backend can be checked for them:

1. `acquire`: the compute waits until the copy into a slot has ended (*ready*) before it reads the slot.
2. `copy(after=…)`: the copy stream waits until the compute that last read an overlapping slot has ended (*done*).
3. `fence_copies`: the copy stream waits for the compute before it writes into memory newly taken from the allocator,
   which kernels still queued may be using for something else.
4. `fence_compute`: the compute waits for the copy stream before the arena goes back to the allocator, which hands it
   out again in the order of the compute stream.

The host never blocks in a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .arena import Arena
from .errors import UnsupportedDeviceError
from .unit import Unit


class Backend(ABC):
    """The two streams of one mover. All calls come from the thread that runs the forward, unless said otherwise."""

    device: torch.device
    waits_block = False  # `acquire` blocks the host

    @abstractmethod
    def enter(self) -> bool:
        """A forward begins: its current stream is the compute stream until the next call. True if it is another one."""

    @abstractmethod
    def install(self, units: Sequence[Unit]) -> None:
        """These units replace all earlier ones; no copy of an earlier one is in flight."""

    @abstractmethod
    def copy(self, unit: Unit, after: Unit | None) -> None:
        """Issues the copy of ``unit`` into its slot, once the compute that read ``after``'s slot is done."""

    @abstractmethod
    def acquire(self, unit: Unit) -> None:
        """The compute waits for the unit's copy."""

    @abstractmethod
    def leave(self, unit: Unit) -> None:
        """The compute issued so far is the last to read the unit's slot."""

    @abstractmethod
    def rest(self, units: Sequence[Unit]) -> None:
        """The compute issued so far is the last to read these residents. `fence_copies` before a copy over them."""

    @abstractmethod
    def keep(self, unit: Unit) -> None:
        """What is in the unit's slot was put there by the compute issued so far; no copy is needed."""

    @abstractmethod
    def fence_copies(self) -> None:
        """Copies issued from now on wait for the compute issued so far."""

    @abstractmethod
    def fence_compute(self) -> None:
        """Compute issued from now on waits for the copies issued so far."""

    @abstractmethod
    def synchronize(self) -> None:
        """The host waits for all copies. From any thread."""

    def take(self, arena: Arena) -> None:
        """Takes the arena's memory; `fence_copies` comes before the first copy. Raises ArenaAllocationError."""
        arena.allocate()

    def free(self, arena: Arena) -> None:
        """Gives the arena's memory back; `fence_compute` came before."""
        arena.free()

    def register(self) -> Callable[[int, int], Callable[[], None] | None] | None:
        """What page-locks host memory in place (see `pinning.register_cuda`); None where there is no need."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Ends threads. The backend is not used again."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Memory of the device that nobody has taken, in bytes."""

    @abstractmethod
    def measure_gbps(self, source: torch.Tensor) -> float:
        """How fast ``source``, shape (n,), uint8, crosses the bus, in 1e9 bytes a second. Blocks, and takes n bytes."""

    # Timing, for profiles: marks on either timeline, resolved later without blocking.

    @abstractmethod
    def mark_compute(self) -> Any:
        """A mark on the compute's timeline."""

    @abstractmethod
    def time_copies(self, on: bool) -> None:
        """Whether `copy` marks the start and end of every copy; taken back by `copy_times`."""

    @abstractmethod
    def copy_times(self) -> list[tuple[int, float]]:
        """(bytes, ms) of the copies that were timed; only once every mark made so far has `passed`."""

    @abstractmethod
    def passed(self, mark: Any) -> bool:
        """Whether the timeline is past the mark; never blocks."""

    @abstractmethod
    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two marks that have `passed`."""


def backend_for(device: torch.device, bus_gbps: float | None = None) -> Backend:
    """
    Args:
        device: where the weights are wanted; "cpu" plays it with a worker thread.
        bus_gbps: paces copies down to so many GB/s, to see what a slower bus would do; None for full speed.

    Raises:
        UnsupportedDeviceError: no copy stream can be driven there.
    """
    if device.type == "cpu":
        from .cpu import CpuBackend

        return CpuBackend(bus_gbps=bus_gbps)
    from .accelerator import AcceleratorBackend

    runtime = getattr(torch, device.type, None)
    if device.type not in ("cuda", "xpu") or runtime is None or not runtime.is_available():
        raise UnsupportedDeviceError(
            f"expected a CUDA or XPU device (cpu, to try it out), found {device}: not supported here, nothing changed"
        )
    return AcceleratorBackend(device, bus_gbps=bus_gbps)
