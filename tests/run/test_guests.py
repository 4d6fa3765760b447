"""Guests: modules that other code runs inside the root's forward, in some forwards only."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import nn

from lib_async_mover import attach, detach
from lib_async_mover.errors import AsyncMoverError, ConcurrentForwardError, UnsupportedModuleError
from lib_async_mover.memory.pinning import ledger
from lib_async_mover.plan.workload import MIB
from tests.checked_backend import CheckedBackend
from tests.edits import CHANGES, EDITS
from tests.memory.test_pinning import Driver
from tests.pair import Pair, hasty, replan, weight_bytes
from tests.small import Chain, Edit, Net, image, make, rows


class Steered(Net):
    """Runs its helpers first, which are no parts of it, as a ControlNet's hook does."""

    helpers: list[Net]
    running: list[int]  # which of the helpers

    def __init__(self) -> None:
        super().__init__(blocks=5)
        self.helpers = []
        self.running = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in self.running:
            x = x + 0.1 * self.helpers[number](x).transpose(1, 2).reshape(x.shape)
        return super().forward(x)


class Steering(Pair):
    """A root with helpers that are guests, and its twin with the like."""

    def __init__(self, helpers: int = 1, share: float = 0.4, backend: CheckedBackend | None = None) -> None:
        model = make(Steered)
        model.helpers = [make(seed=number + 1, blocks=5 + number) for number in range(helpers)]
        model.running = list(range(helpers))
        super().__init__(model, share, backend=backend)
        self.mover.guests = model.helpers

    def helper(self, number: int) -> tuple[Net, Net]:
        return self.model.helpers[number], self.twin.helpers[number]

    def run_helpers(self, *running: int) -> None:
        self.model.running = self.twin.running = list(running)

    def check_helpers(self) -> None:
        for ours, theirs in zip(self.model.helpers, self.twin.helpers, strict=True):
            assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
            assert ours.state_dict().keys() == theirs.state_dict().keys()

    @property
    def guest_stats(self) -> list[dict]:
        return self.mover.stats()["guests"]


@pytest.mark.parametrize("helpers", [1, 2])
@pytest.mark.parametrize("share", [0.1, 0.4, 3.0])
def test_guests_stream_with_the_root(helpers: int, share: float) -> None:
    pair = Steering(helpers, share)
    pair.run(times=4)
    loads = pair.on_demand_loads
    pair.settle()
    assert pair.on_demand_loads == loads, "only the traced forward loads on demand"
    stats = pair.mover.stats()
    everything = sum(map(weight_bytes, [pair.model, *pair.model.helpers]))
    assert stats["weights_mib"] * MIB == pytest.approx(everything, rel=0.05)
    assert stats["arena_mib"] <= stats["budget_mb"]
    if share < 1:
        assert all(guest["bytes_per_step"] > 0 for guest in stats["guests"])
    assert [guest["name"] for guest in stats["guests"]] == ["Net", "Net 2"][:helpers]
    pair.mover.release()
    pair.check_helpers()
    pair.check_weights()


def test_the_same_guests_again_cost_nothing() -> None:
    pair = Steering(2)
    pair.settle()
    store, loads = pair.mover.placement.store, pair.on_demand_loads
    pair.mover.guests = list(reversed(pair.model.helpers))
    pair.run(times=3)
    assert pair.mover.placement.store is store and pair.on_demand_loads == loads


def test_a_guest_that_comes_or_goes_touches_no_other_pack() -> None:
    pair = Steering(2)
    first, second = pair.model.helpers
    pair.mover.guests = [first]
    pair.run_helpers(0)
    pair.run(times=4)
    root_at, first_at = pair.model.out.weight.data_ptr(), first.out.weight.data_ptr()
    pair.mover.guests = [first, second]
    pair.run_helpers(1, 0)
    pair.run(times=4)
    second_at = second.out.weight.data_ptr()
    pair.mover.guests = [second]
    pair.run_helpers(1)
    pair.run(times=4)
    assert (pair.model.out.weight.data_ptr(), second.out.weight.data_ptr()) == (root_at, second_at)
    assert first.out.weight.data_ptr() == first_at, "it keeps its memory; only the pages are unlocked"
    assert not any(child._forward_pre_hooks for child in first.modules())
    x = image()
    assert torch.equal(first(x), pair.twin.helpers[0](x))
    pair.check_helpers()


def test_a_guest_that_ends_is_not_copied_any_more() -> None:
    pair = Steering(1, share=0.1)
    pair.settle()
    with_guest = pair.mover.stats()["bytes_per_step"]
    pair.run_helpers()
    pair.run(times=3)
    assert pair.guest_stats[0]["bytes_per_step"] == 0
    assert pair.mover.stats()["bytes_per_step"] < 0.7 * with_guest
    loads = pair.on_demand_loads
    pair.settle()
    assert pair.on_demand_loads == loads, "the order without it is known from the order with it"
    pair.run_helpers(0)
    pair.run(times=3)
    assert pair.guest_stats[0]["bytes_per_step"] > 0
    loads = pair.on_demand_loads
    pair.run(times=3)
    assert pair.on_demand_loads == loads


def test_a_guest_in_every_other_forward_keeps_the_plan() -> None:
    pair = Steering(1)
    pair.settle()
    layout, loads = pair.mover.placement.layout, pair.on_demand_loads
    for number in range(6):
        pair.run_helpers(*([0] if number % 2 else []))
        pair.run(seed=number)
    assert pair.mover.placement.layout is layout and pair.on_demand_loads == loads


def test_a_guest_that_starts_late() -> None:
    pair = Steering(2)
    pair.run_helpers(0)
    pair.run(times=3)
    pair.run_helpers(0, 1)
    pair.run(times=3)
    loads = pair.on_demand_loads
    pair.run(times=2)
    assert pair.on_demand_loads == loads


@pytest.mark.parametrize("edit", EDITS)
def test_edits_inside_a_guest_come_home(edit: Edit) -> None:
    pair = Steering(1, share=0.2)
    pair.run(times=3)
    for helper in pair.helper(0):
        helper.edit_inside(edit)
    pair.run(times=3)
    for helper in pair.helper(0):
        helper.edit_inside(None)
    pair.run(times=3)
    pair.check_helpers()


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_a_guest_between_forwards(change: Edit) -> None:
    pair = Steering(1, share=0.2)
    pair.run(times=3)
    root_at = pair.model.out.weight.data_ptr()
    for helper in pair.helper(0):
        with torch.no_grad():
            change(helper)
    pair.run(times=4)
    pair.check_helpers()
    assert pair.model.out.weight.data_ptr() == root_at, "the root's pack is not touched"


def test_an_exception_inside_a_guest() -> None:
    pair = Steering(2)
    pair.run(times=3)
    for step in (0, 2, 4):
        for model, helper in zip((pair.model, pair.twin), pair.helper(1), strict=True):
            helper.fail_at = step
            with pytest.raises(RuntimeError):
                model(image())
            helper.fail_at = None
        pair.run(times=2)
    pair.check_helpers()


def test_a_guest_called_by_itself() -> None:
    pair = Steering(1)
    for _ in range(3):
        ours, theirs = pair.helper(0)
        assert torch.equal(ours(image()), theirs(image()))
        pair.run()


def test_a_guest_that_reads_a_layer_aside() -> None:
    class Tied(Chain):
        def after(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.layers[2].weight)

    class Root(Chain):
        def before(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.helpers[0](x)

    model = make(Root)
    model.helpers = [make(Tied, seed=3)]
    pair = Pair(model, 0.3, inputs=rows)
    pair.mover.guests = model.helpers
    pair.run(times=6)
    (standing,) = pair.mover.placement.store.standing
    assert standing.members == [model.helpers[0].layers[2]]


def test_what_cannot_be_a_guest_changes_nothing() -> None:
    pair = Steering(1)
    pair.run(times=3)
    before = pair.mover.guests
    free, elsewhere, holder, tied = make(seed=9), make(seed=8), nn.ModuleList([pair.model]), make(seed=7)
    attach(elsewhere, "cpu", backend=CheckedBackend())
    tied.out.weight = pair.model.out.weight
    cases: list[tuple[list[nn.Module], type[Exception], str]] = [
        ([free, elsewhere], AsyncMoverError, "streams already"),
        ([free, pair.model.blocks[0]], AsyncMoverError, "streams already"),
        ([free, pair.model], AsyncMoverError, "streams already"),
        ([free, holder], AsyncMoverError, "streams already"),
        ([free, free.blocks[0]], AsyncMoverError, "weights of its own"),
        ([free, tied], AsyncMoverError, "weights of its own"),
        ([free, nn.ReLU()], AsyncMoverError, "no layers"),
        ([free, nn.Linear(4, 4, device="meta")], UnsupportedModuleError, "meta"),
    ]
    for modules, error, message in cases:
        with pytest.raises(error, match=message):
            pair.mover.guests = modules
        assert pair.mover.guests == before and not free._forward_pre_hooks and not free.out._forward_pre_hooks
    pair.run(times=2)
    with pytest.raises(AsyncMoverError, match="streams already"):
        attach(pair.model.helpers[0], "cpu", backend=CheckedBackend())
    with pytest.raises(AsyncMoverError, match="whole"):
        attach(make(seed=5), "cpu", whole=True, backend=CheckedBackend()).guests = [free]
    detach(elsewhere)


def test_a_guest_of_two_roots_is_refused_until_the_first_gives_it_back() -> None:
    pair, other = Steering(1), attach(make(seed=4), "cpu", backend=CheckedBackend())
    with pytest.raises(AsyncMoverError, match="streams already"):
        other.guests = pair.model.helpers
    pair.run(times=2)
    pair.close()
    other.guests = pair.model.helpers
    other.guests = []
    pair.run()


def test_a_copy_of_a_guest_is_an_ordinary_module() -> None:
    pair = Steering(1)
    pair.run(times=3)
    copied = copy.deepcopy(pair.model.helpers[0])
    assert torch.equal(copied(image()), pair.twin.helpers[0](image()))


def test_guests_cannot_be_set_inside_a_forward() -> None:
    pair = Steering(1)
    handle = pair.model.blocks[0].register_forward_pre_hook(lambda *_: setattr(pair.mover, "guests", []))
    with pytest.raises(ConcurrentForwardError, match="between two"):
        pair.model(image())
    handle.remove()
    pair.run(times=2)


def test_a_second_thread_in_a_guest_outside_the_forward() -> None:
    pair = Steering(1)
    pair.run(times=3)
    results: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: results.append(pair.model.helpers[0](image())))
    thread.start()
    thread.join()
    assert torch.equal(results[0], pair.twin.helpers[0](image()))
    pair.run(times=2)


@pytest.mark.parametrize("released", [False, True])
def test_a_guest_is_not_kept_alive(released: bool) -> None:
    driver, before = Driver(), ledger.pinned_bytes
    pair = Steering(2, backend=driver)
    pair.run(times=4)
    root_bytes = pair.mover.placement.store.stores[0].pinned_bytes
    if released:
        pair.mover.release()
    pair.mover.backend.synchronize()
    gone = weakref.ref(pair.model.helpers.pop())
    weight = weakref.ref(pair.model.helpers.pop().out.weight)
    gc.collect()
    assert gone() is None and weight() is None
    assert pair.mover.guests == [] and pair.guest_stats == []
    assert ledger.pinned_bytes - before == root_bytes, "their pages are given back without another forward"
    pair.run_helpers()
    pair.run(times=3)
    pair.close()
    assert ledger.pinned_bytes == before


def test_pages_are_given_back_after_the_last_guest_left() -> None:
    driver, before = Driver(), ledger.pinned_bytes
    pair = Steering(2, backend=driver)
    pair.run(times=4)
    pair.mover.guests = []
    assert ledger.pinned_bytes - before == pair.mover.placement._parts[0].store.pinned_bytes
    pair.check_helpers()
    pair.run_helpers()
    pair.run(times=2)


def test_a_guest_does_not_keep_its_root_alive() -> None:
    pair = Steering(1)
    pair.run(times=3)
    helper, twin = pair.helper(0)
    pair.mover.backend.synchronize()
    root = weakref.ref(pair.model)
    del pair
    gc.collect()
    assert root() is None
    assert torch.equal(helper(image()), twin(image()))
    attach(helper, "cpu", 0.01, backend=CheckedBackend())
    assert torch.equal(helper(image()), twin(image()))
    detach(helper)


class Life(RuleBasedStateMachine):
    """Guests come, go, run and change by dice, beside an untouched twin; slots are poisoned and copies late."""

    @initialize(share=st.sampled_from((0.1, 0.3, 0.9, 3.0)), seed=st.integers(0, 20))
    def attach(self, share: float, seed: int) -> None:
        self.pair = Steering(2, share, CheckedBackend(poison=True, delay=hasty(seed)))

    @rule(times=st.integers(1, 3), seed=st.integers(0, 20))
    def forward(self, times: int, seed: int) -> None:
        for i in range(times):
            replan(self.pair.mover, seed)
            self.pair.run(seed=seed + i)

    @rule(running=st.lists(st.sampled_from((0, 1)), max_size=3))
    def other_helpers_run(self, running: list[int]) -> None:
        """On a GPU, one that is no guest would have to be moved there first."""
        guests = self.pair.mover.guests
        self.pair.run_helpers(*(number for number in running if self.pair.model.helpers[number] in guests))

    @rule(numbers=st.sets(st.sampled_from((0, 1))))
    def set_guests(self, numbers: set[int]) -> None:
        self.pair.run_helpers(*numbers)
        self.pair.mover.guests = [self.pair.model.helpers[number] for number in sorted(numbers)]

    @rule(number=st.sampled_from((0, 1)), change=st.sampled_from(CHANGES))
    def change_between_forwards(self, number: int, change: Edit) -> None:
        with torch.no_grad():
            for helper in self.pair.helper(number):
                change(helper)

    @rule(number=st.sampled_from((0, 1)), edit=st.sampled_from((*EDITS, None)))
    def edit_inside_forwards(self, number: int, edit: Edit | None) -> None:
        for helper in self.pair.helper(number):
            helper.edit_inside(edit)

    @rule(number=st.sampled_from((0, 1)), step=st.integers(0, 4))
    def fail(self, number: int, step: int) -> None:
        for model, helper in zip((self.pair.model, self.pair.twin), self.pair.helper(number), strict=True):
            helper.fail_at = step
            if number in model.running:
                with pytest.raises(RuntimeError):
                    model(image())
            helper.fail_at = None

    @rule(number=st.sampled_from((0, 1)))
    def another_in_its_place(self, number: int) -> None:
        """The old one is dropped, guest or not."""
        helper = make(seed=number + 7, blocks=5 + number)
        was_guest = self.pair.model.helpers[number] in self.pair.mover.guests
        self.pair.model.helpers[number], self.pair.twin.helpers[number] = helper, copy.deepcopy(helper)
        if was_guest:
            self.pair.mover.guests = [*self.pair.mover.guests, helper]

    @rule(share=st.sampled_from((0.1, 0.3, 0.9)))
    def another_size(self, share: float) -> None:
        self.pair.mover.vram_mb = share * weight_bytes(self.pair.twin) / MIB

    @rule(verb=st.sampled_from(("release", "invalidate_all")))
    def verb(self, verb: str) -> None:
        getattr(self.pair.mover, verb)()

    @invariant()
    def nothing_runs(self) -> None:
        assert not self.pair.mover.busy

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.run(times=2)
            self.pair.mover.guests = []
            self.pair.run_helpers()
            self.pair.check_helpers()
            self.pair.check_weights()
            self.pair.close()
            self.pair.run()


TestLife: Callable = Life.TestCase
TestLife.settings = settings(  # type: ignore[attr-defined]
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
