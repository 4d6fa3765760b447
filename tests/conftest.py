"""What engine tests share: a model and its twin, slowed copies, poisoned slots."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from lib_async_mover import Mover, attach
from lib_async_mover.bench.shapes import SHAPES, TINY
from lib_async_mover.cpu import CpuBackend
from lib_async_mover.workload import LeafCost, Workload
from tests.small import image, make

MIB = 1 << 20


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


def hasty(seed: int = 0) -> Callable[[int], float]:
    """Delays of 0 to 3 ms at random: copies that are sometimes early and mostly late."""
    dice = random.Random(seed)
    return lambda count: dice.choice((0.0, 0.0005, 0.003))


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small layers on a busy machine: threads that wait for each other cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_and_quick(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's `tiny` is smaller still, and its look at the bus short."""
    monkeypatch.setattr("lib_async_mover.bench.device._BUS_PROBE_BYTES", 2**20)
    small = dataclasses.replace(TINY, multipliers=(1, 2), transformer_depths=(0, 1), res_blocks=1)
    monkeypatch.setitem(SHAPES, "tiny", small)


def replan(mover: Mover, seed: int) -> None:
    """The next forward has another plan for the same budget: the profile is another one, by dice."""
    scheduler = mover.holdings.scheduler
    assert scheduler is not None
    known = scheduler._known[scheduler._signature]
    workload, dice = known.workload, random.Random(seed)
    assert workload is not None
    leaves = tuple(LeafCost(leaf.name, leaf.bytes, dice.random() ** 3) for leaf in workload.leaves)
    known.workload = Workload(leaves, gbps=workload.weight_bytes / 1e6 / 12, barriers=workload.barriers)
    scheduler._due = True


class Pair:
    """A streamed model and an untouched twin that must agree with it to the bit."""

    def __init__(self, model: nn.Module, share: float = 0.4, poison: bool = True, seed: int = 0) -> None:
        self.model = model
        self.twin = copy.deepcopy(model)
        self.backend = CpuBackend(poison=poison, delay=hasty(seed))
        self.mover: Mover = attach(model, "cpu", share * weight_bytes(model) / MIB, backend=self.backend)

    def run(self, times: int = 1, seed: int = 1) -> None:
        """Both give the same for the same input."""
        for i in range(times):
            x = image(seed + i)
            assert torch.equal(self.model(x), self.twin(x))

    def check(self, times: int = 1, seed: int = 1) -> None:
        """Both give the same for the same input, and the streamed one is whole on the CPU afterwards."""
        self.run(times, seed)
        self.check_weights()

    def settle(self, size: int = 8) -> None:
        """Runs until the plan is made from a profile, and verified."""
        for i in range(40):
            x = image(i, size)
            assert torch.equal(self.model(x), self.twin(x))
            if self.mover.settled:
                return
        raise AssertionError("the plan never settled")

    def still(self) -> None:
        """Settles on a plan with residents, and measures nothing by itself any more."""
        self.settle()
        scheduler = self.mover.holdings.scheduler
        assert scheduler is not None
        scheduler._profiler.result = lambda: None  # type: ignore[method-assign]
        for seed in range(100, 200):
            if self.residents:
                return
            self.replan(seed)
            self.check(times=2)
        raise AssertionError("no plan had residents")

    def replan(self, seed: int) -> None:
        replan(self.mover, seed)

    @property
    def residents(self) -> set[str]:
        """Names of the leaves that are resident by the plan in force."""
        holdings = self.mover.holdings
        assert holdings.loadout is not None and holdings.pack is not None
        return {
            leaf.name
            for unit in holdings.loadout.plan.units
            if unit.resident
            for leaf in holdings.pack.order[unit.first : unit.stop]
        }

    def hold(self) -> None:
        """Settles on a plan with residents, which stay bound from now on."""
        self.mover.hold = True
        self.still()
        assert self.mover.holdings.scheduler is not None
        self.mover.holdings.scheduler._verified = True
        self.run(times=2)
        assert self.held

    @property
    def held(self) -> bool:
        """Whether residents are bound though no forward runs."""
        loadout = self.mover.holdings.loadout
        return loadout is not None and bool(loadout.pipeline.held)

    def warm_up(self, warm: int | None) -> None:
        """So many forwards; None: until the plan has settled and its residents are held."""
        if warm is None:
            self.hold()
        else:
            self.check(times=warm)

    def check_weights(self) -> None:
        """Every parameter and buffer is a CPU tensor with the twin's values."""
        ours, theirs = self.model.state_dict(), self.twin.state_dict()
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert ours[key].device.type == "cpu"
            assert ours[key].dtype == value.dtype and ours[key].stride() == value.stride(), key
            assert torch.equal(ours[key], value), key

    def both(self, change: Callable[[nn.Module], None]) -> None:
        """Does the same to the model and to its twin."""
        change(self.model)
        change(self.twin)

    @property
    def loads_on_the_spot(self) -> int:
        return self.mover.visits.count


@pytest.fixture
def pair() -> Pair:
    """`Net` under a budget of 40 % of its weights, warm: traced, packed, profiled, planned."""
    made = Pair(make())
    made.settle()
    assert made.mover.stats()["streamed_units"] > 1
    return made
