"""A device on paper: a CPU that launches, a GPU that computes, and a bus, each with a clock of its own.

Weights are copied for real, so results can be compared; only time is made up. Kernels are launched into a queue of
limited depth, and a CPU that has filled it waits: that is how a real one slows down behind a slow GPU or bus.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib_async_mover import Mover, attach
from lib_async_mover.device.backend import Backend, Copy, Done, Mark, TimedCopies
from lib_async_mover.plan.workload import MIB, LeafCost, Workload


class VirtualBackend(Backend):
    """Times in ms."""

    def __init__(self, bytes_per_ms: float = 1e6, fetch_ms: float = 0.0, depth: int = 1, memory_bytes: int = 0) -> None:
        """
        Args:
            fetch_ms: CPU time that a streamed unit takes: a fifth for the wait, the rest to exchange tensors.
            depth: how many leaves the CPU may be ahead.
        """
        self.device = torch.device("cpu")
        self.bytes_per_ms = bytes_per_ms
        self.fetch_ms = fetch_ms
        self.memory_bytes = memory_bytes
        self.host_ms = 0.0
        self.compute_ms = 0.0  # the compute stream is busy until then
        self.copy_ms = 0.0
        self._queue: deque[float] = deque(maxlen=depth)
        self._timed: TimedCopies | None = None

    def launch(self, launch_ms: float, compute_ms: float) -> None:
        """One leaf is launched, and computes when its turn comes."""
        if len(self._queue) == self._queue.maxlen:
            self.host_ms = max(self.host_ms, self._queue[0])
        self.host_ms += launch_ms
        self.compute_ms = self.mark_compute() + compute_ms
        self._queue.append(self.compute_ms)

    def use_current_stream(self) -> bool:
        return False

    def copy(self, source: torch.Tensor, target: torch.Tensor, pinned: bool, after: Done | None) -> Copy:
        start_ms = max(self.copy_ms, self.host_ms, after or 0.0)
        self.copy_ms = start_ms + source.numel() / self.bytes_per_ms
        target.copy_(source)
        if self._timed is not None:
            self._timed.append((source.numel(), start_ms, self.copy_ms))
        return Copy(source, target, self.copy_ms, None)

    def wait_for_copy(self, copy: Copy) -> None:
        self.host_ms += 0.2 * self.fetch_ms
        self.compute_ms = max(self.compute_ms, copy.ready)

    def release(self, copy: Copy) -> Done:
        done = self.mark_compute()
        self.host_ms += 0.8 * self.fetch_ms
        return done

    def fence_copies(self) -> None:
        self.copy_ms = max(self.copy_ms, self.mark_compute())

    def fence_compute(self) -> None:
        self.compute_ms = max(self.compute_ms, self.copy_ms)

    def synchronize(self) -> None:
        self.host_ms = max(self.host_ms, self.copy_ms)

    def close(self) -> None:
        pass

    def free_bytes(self) -> int:
        return self.memory_bytes

    def mark_compute(self) -> Mark:
        return max(self.compute_ms, self.host_ms)

    def time_copies(self, into: TimedCopies | None) -> None:
        self._timed = into

    def passed(self, mark: Mark) -> bool:
        return bool(mark <= self.host_ms)

    def elapsed_ms(self, start: Mark, end: Mark) -> float:
        return float(end - start)


class Row(nn.Module):
    """A leaf of so many bytes."""

    def __init__(self, count: int, launch: Callable[[], None]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(max(1, count // 4)))
        self._launch = launch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._launch()
        return x * self.weight[0] + self.weight[-1]


def uneven(launch_ms: float, compute_ms: float, copy_ms: float, leaves: int = 120) -> Workload:
    """A third of the leaves holds most bytes and takes little time, as the low-resolution blocks of a UNet do.

    Args:
        launch_ms, compute_ms, copy_ms: of all leaves together: the CPU's, the GPU's and the bus's time.
    """
    heavy = [leaves // 3 <= i < 2 * leaves // 3 for i in range(leaves)]
    each_ms = compute_ms / (0.8 * leaves)
    kinds = [(112 << 10, 0.4 * each_ms) if flag else (24 << 10, each_ms) for flag in heavy]
    rows = tuple(LeafCost(str(i), count, ms) for i, (count, ms) in enumerate(kinds))
    return Workload(rows, sum(leaf.bytes for leaf in rows) / copy_ms / 1e6, launch_ms=launch_ms)


class Machine:
    """A chain of a workload's leaves on a virtual device that takes the workload's times."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, load: Workload, fetch_ms: float = 0.05, depth: int = 150, scale: int = 1
    ) -> None:
        """
        Args:
            scale: leaves and bus are smaller by so much than the workload's.
        """
        self.load = load
        self.scale = scale
        self.launch_ms = load.launch_ms
        self.weight_mb = load.weight_bytes / MIB
        self.backend = VirtualBackend(load.bytes_per_ms / scale, fetch_ms, depth, 64 * load.weight_bytes)
        self.launch_factor = self.compute_factor = 1.0  # how much slower CPU and GPU are, for a while
        self.gap_ms = 0.2  # CPU time between two forwards
        self.waits = False  # for the device, before that
        launch_ms = load.launch_ms / len(load.leaves)

        def launch(ms: float) -> None:
            self.backend.launch(self.launch_factor * launch_ms, self.compute_factor * ms)

        rows = [Row(leaf.bytes // scale, lambda ms=leaf.ms: launch(ms)) for leaf in load.leaves]  # type: ignore[misc]
        self.model = nn.Sequential(*rows).eval()
        clock = SimpleNamespace(perf_counter=lambda: self.backend.host_ms / 1e3)
        for module in ("forward", "forward_scope", "profile"):
            monkeypatch.setattr(f"lib_async_mover.run.{module}.time", clock)
        self.x = torch.randn(2)
        self.expected = self.model(self.x)

    def attach(self, share: float) -> Mover:
        """A budget of that share of the weights; 0 is automatic."""
        return self.attach_mb(share * self.weight_mb)

    def attach_mb(self, vram_mb: float) -> Mover:
        return attach(self.model, "cpu", vram_mb / self.scale, backend=self.backend)

    def step_ms(self, steps: int = 1) -> float:
        """The mean time from the start of a forward to the start of the next."""
        before = self.backend.mark_compute()
        for _ in range(steps):
            assert torch.equal(self.model(self.x), self.expected)
            if self.waits:
                self.backend.host_ms = self.backend.mark_compute()
            self.backend.host_ms += self.gap_ms
        return self.backend.elapsed_ms(before, self.backend.mark_compute()) / steps

    def settle(self, mover: Mover, most: int = 40) -> None:
        """Runs until the plan is settled; then a device behind its CPU catches up."""
        for _ in range(most):
            self.step_ms()
            if mover.settled:
                self.step_ms(12)
                return
        raise AssertionError(f"the plan did not settle in {most} forwards")
