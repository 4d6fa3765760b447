"""A streamed model and its untouched twin, over a backend with poisoned slots and copies that are mostly late."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lib_async_mover import Mover, attach, detach
from lib_async_mover.plan.workload import MIB, LeafCost, Workload
from tests.checked_backend import CheckedBackend
from tests.small import image, make


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


def hasty(seed: int = 0) -> Callable[[int], float]:
    """Delays of 0 to 1 ms by dice: copies that are sometimes early and mostly late."""
    dice = random.Random(seed)
    return lambda count: dice.choice((0.0, 0.0003, 0.001))


def replan(mover: Mover, seed: int) -> None:
    """The next forward has another plan for the same budget, by dice: it does not depend on how long anything took."""
    store, dice = mover.placement.store, random.Random(seed)
    if store is not None:
        leaf_ms = [dice.random() ** 3 for _ in store.order]
        gbps = store.bytes / (2 * sum(leaf_ms)) / 1e6  # copying takes twice as long as computing
        rows = zip(store.order, store.leaf_bytes, leaf_ms, strict=True)
        leaves = tuple(LeafCost(leaf.name, count, ms) for leaf, count, ms in rows)
        mover.use(Workload(leaves, gbps, store.standing_bytes, store.barriers))


class Pair:
    """The two must agree to the bit."""

    def __init__(
        self, model: nn.Module | None = None, share: float = 0.4, seed: int = 0, *, whole: bool = False,
        backend: CheckedBackend | None = None, inputs: Callable[[int, int], torch.Tensor] = image,
        twin: nn.Module | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            inputs: makes one of a seed and a size.
            twin: where the model cannot be copied.
            share: the buffer's, of the weights.
            seed: of the copies' delays.
        """
        self.model: Any = make() if model is None else model
        self.twin: Any = twin or copy.deepcopy(self.model)
        self.inputs = inputs
        self.backend = backend or CheckedBackend(poison=True, delay=hasty(seed))
        vram_mb = share * weight_bytes(self.model) / MIB
        self.mover = attach(self.model, "cpu", vram_mb, whole=whole, backend=self.backend)

    def close(self) -> None:
        detach(self.model)

    def run(self, times: int = 1, seed: int = 1, size: int = 8) -> None:
        """Both give the same for the same input."""
        for i in range(times):
            x = self.inputs(seed + i, size)
            assert torch.equal(self.model(x), self.twin(x))

    def check(self, times: int = 1, seed: int = 1) -> None:
        """Both give the same for the same input, and the streamed one is whole on the CPU afterwards."""
        self.run(times, seed)
        self.check_weights()

    def check_weights(self) -> None:
        """Every parameter and buffer is a CPU tensor with the twin's values."""
        ours, theirs = self.model.state_dict(), self.twin.state_dict()
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert ours[key].device.type == "cpu"
            assert ours[key].dtype == value.dtype and ours[key].stride() == value.stride(), key
            assert torch.equal(ours[key], value), key

    def settle(self, size: int = 8) -> None:
        """Runs until the plan is made from a profile, and seen to hold."""
        for i in range(40):
            self.run(seed=i, size=size)
            if self.mover.settled:
                return
        raise AssertionError("the plan never settled")

    def both(self, change: Callable[[Any], object]) -> None:
        """Does the same to the model and to its twin."""
        change(self.model)
        change(self.twin)

    @property
    def on_demand_loads(self) -> int:
        return self.mover.stats()["on_demand_loads"]
