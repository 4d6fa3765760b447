"""A device that exists on paper: a CPU that launches, a GPU that computes, and a bus, each with a clock of its own.

Weights are copied for real, so results can be compared; only time is made up. Kernels are launched into a queue of
limited depth, and a CPU that has filled it waits: that is how a real one slows down behind a slow GPU or bus.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from lib_async_mover import Mover, attach, bracket, mover
from lib_async_mover.backend import Backend
from lib_async_mover.unit import Unit

MIB = 1 << 20


class VirtualBackend(Backend):
    """Times in ms. ``enter_ms`` is the CPU's part of a streamed unit, ``depth`` how many leaves it may be ahead."""

    def __init__(self, gbps: float, enter_ms: float, depth: int, memory_bytes: int) -> None:
        self.device = torch.device("cpu")
        self.rate = gbps * 1e6
        self.enter_ms = enter_ms
        self.memory_bytes = memory_bytes
        self.host_ms = 0.0
        self.compute_ms = 0.0  # the compute stream is busy until then
        self.copy_ms = 0.0
        self._queue: deque[float] = deque(maxlen=depth)
        self._timed: list[tuple[int, float]] | None = None

    def compute(self, launch_ms: float, compute_ms: float) -> None:
        """One leaf is launched, and computes when its turn comes."""
        if len(self._queue) == self._queue.maxlen:
            self.host_ms = max(self.host_ms, self._queue[0])
        self.host_ms += launch_ms
        self.compute_ms = max(self.compute_ms, self.host_ms) + compute_ms
        self._queue.append(self.compute_ms)

    def enter(self) -> bool:
        return False

    def install(self, units: Sequence[Unit]) -> None:
        pass

    def copy(self, unit: Unit, after: Unit | None) -> None:
        start = max(self.copy_ms, self.host_ms, (after.done or 0.0) if after is not None else 0.0)
        self.copy_ms = unit.ready = start + unit.bytes / self.rate
        unit.target.copy_(unit.source)
        if self._timed is not None:
            self._timed.append((unit.bytes, unit.bytes / self.rate))

    def acquire(self, unit: Unit) -> None:
        self.host_ms += self.enter_ms
        self.compute_ms = max(self.compute_ms, unit.ready)

    def leave(self, unit: Unit) -> None:
        unit.done = max(self.compute_ms, self.host_ms)

    def rest(self, units: Sequence[Unit]) -> None:
        pass

    def keep(self, unit: Unit) -> None:
        unit.ready = max(self.compute_ms, self.host_ms)

    def fence_copies(self) -> None:
        self.copy_ms = max(self.copy_ms, self.compute_ms, self.host_ms)

    def fence_compute(self) -> None:
        self.compute_ms = max(self.compute_ms, self.copy_ms)

    def synchronize(self) -> None:
        self.host_ms = max(self.host_ms, self.copy_ms)

    def close(self) -> None:
        pass

    def free_bytes(self) -> int:
        return self.memory_bytes

    def measure_gbps(self, source: torch.Tensor) -> float:
        return self.rate / 1e6

    def mark_compute(self) -> Any:
        return max(self.compute_ms, self.host_ms)

    def time_copies(self, on: bool) -> None:
        self._timed = [] if on else None

    def copy_times(self) -> list[tuple[int, float]]:
        return list(self._timed or ())

    def passed(self, mark: Any) -> bool:
        return bool(mark <= self.host_ms)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(end - start)


class Chain(nn.Module):
    """Leaves of given sizes, in a row."""

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__()
        self.leaves = nn.ModuleList(nn.Linear(64, count, bias=False) for count in rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for leaf in self.leaves:
            x = x + leaf(x).mean()
        return x


class Machine:
    """A chain of leaves on a virtual device."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, launch_ms: float, compute_ms: float, copy_ms: float,
        enter_ms: float = 0.05, depth: int = 150, leaves: int = 120, gap_ms: float = 0.2,
    ) -> None:  # fmt: skip
        """
        Args:
            launch_ms, compute_ms, copy_ms: of all leaves together: the CPU's, the GPU's and the bus's time.
        """
        # A third of the leaves holds most bytes and takes little time, as the low-resolution blocks of a UNet do.
        heavy = [leaves // 3 <= i < 2 * leaves // 3 for i in range(leaves)]
        self.model = Chain([448 if flag else 96 for flag in heavy]).eval()
        self.bytes = sum(p.numel() * 4 for p in self.model.parameters())
        self.backend = VirtualBackend(self.bytes / copy_ms / 1e6, enter_ms, depth, 64 * self.bytes)
        self.gap_ms = gap_ms
        self.launch_ms = launch_ms
        self.launch_bound = launch_ms > 1.1 * compute_ms
        self.slowness = 1.0  # of the CPU, for a while
        light = 1.0 / (2 * leaves / 3 + leaves / 3 * 0.4)
        for leaf, flag in zip(self.model.leaves, heavy, strict=True):
            share = light * (0.4 if flag else 1.0)
            leaf.register_forward_hook(
                lambda *_, ms=compute_ms * share: self.backend.compute(self.slowness * launch_ms / leaves, ms)
            )
        clock = type("clock", (), {"perf_counter": staticmethod(lambda: self.backend.host_ms / 1e3)})
        monkeypatch.setattr(mover, "time", clock)
        monkeypatch.setattr(bracket, "time", clock)
        self.x = torch.randn(2, 64)
        self.expected = self.model(self.x)

    def attach(self, share: float) -> Mover:
        """A budget of that share of the weights; 0 is automatic."""
        return attach(self.model, "cpu", share * self.bytes / MIB, backend=self.backend)

    def step_ms(self, steps: int = 1) -> float:
        """The mean time from the start of a forward to the start of the next."""
        before = self.backend.mark_compute()
        for _ in range(steps):
            assert torch.equal(self.model(self.x), self.expected)
            self.backend.host_ms += self.gap_ms
        return (self.backend.mark_compute() - before) / steps

    def settle(self, mover: Mover) -> None:
        for _ in range(80):
            self.step_ms()
            if mover.settled:
                self.step_ms(12)  # a device behind its CPU catches up
                return
        raise AssertionError("the plan never settled")
