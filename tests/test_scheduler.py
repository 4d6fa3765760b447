"""From profile to plan on machines that wait for their CPU, their GPU or their bus: predictions come true."""

from __future__ import annotations

import pytest
import torch

from lib_async_mover import bracket, detach
from lib_async_mover.masters import Masters
from lib_async_mover.scheduler import signature_of
from tests.virtual import Machine

MACHINES = {
    "waits for its CPU": dict(launch_ms=20.0, compute_ms=12.5, copy_ms=31.0),
    "CPU and GPU alike": dict(launch_ms=42.0, compute_ms=43.5, copy_ms=93.0),
    "CPU nearly as slow as its bus": dict(launch_ms=67.0, compute_ms=43.5, copy_ms=93.0, depth=50),
    "waits for its bus": dict(launch_ms=20.0, compute_ms=60.0, copy_ms=140.0),
    "waits for its GPU": dict(launch_ms=25.0, compute_ms=172.0, copy_ms=143.0),
}


@pytest.fixture(params=MACHINES.values(), ids=MACHINES.keys())
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch, **request.param)


@pytest.mark.parametrize(
    "shares", [(1.1, 0.1, 0.3, 0.6), (0.1, 0.3, 0.6, 1.1), (0.6, 0.1)], ids=["falling", "rising", "two"]
)
def test_every_budget_takes_as_long_as_predicted(machine: Machine, shares: tuple[float, ...]) -> None:
    for share in shares:
        mover = machine.attach(share)
        machine.settle(mover)
        measured, stats = machine.step_ms(20), mover.stats()
        assert measured == pytest.approx(stats["predicted_ms"], rel=0.06), f"{share:.0%} of the weights"
        assert stats["step_ms"] == pytest.approx(measured, rel=0.05)


def test_more_budget_is_never_slower(machine: Machine) -> None:
    times = []
    for share in (0.1, 0.2, 0.4, 0.7, 1.1):
        machine.settle(machine.attach(share))
        times.append(machine.step_ms(20))
    assert all(after <= before * 1.01 for before, after in zip(times, times[1:], strict=False)), times


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_a_busy_minute_of_the_cpu_does_not_stay_in_the_plan(machine: Machine, share: float) -> None:
    quiet_mover = machine.attach(share)
    machine.settle(quiet_mover)
    quiet_ms = machine.step_ms(20)
    detach(machine.model)
    machine.attach(1.1)
    machine.slowness = 2.5
    for _ in range(20):
        machine.step_ms()
    busy_mover = machine.attach(share)
    for _ in range(20):
        machine.step_ms()
    machine.slowness = 1.0
    for _ in range(2):  # images
        for _ in range(20):
            machine.step_ms()
        busy_mover.release()
    machine.step_ms(20)
    assert machine.step_ms(20) <= 1.05 * quiet_ms
    assert busy_mover.settled


def test_a_cpu_that_waits_for_room_in_the_queue_is_not_taken_for_a_slow_one(machine: Machine) -> None:
    """Small buffers first: the bus binds, and holds up the CPU. What it then takes is no launch time."""
    for share in (0.05, 0.1, 0.2, 0.4, 0.6):
        mover = machine.attach(share)
        machine.settle(mover)
        workload = mover.workload()
        assert workload is not None and workload.launch_ms <= 1.1 * machine.launch_ms


def test_a_settled_plan_is_not_made_anew_in_the_middle_of_an_image(machine: Machine) -> None:
    machine.slowness = 2.5
    busy_mover = machine.attach(0.5)
    machine.settle(busy_mover)
    plan = busy_mover.holdings.loadout.plan
    machine.slowness = 1.0
    for _ in range(60):
        machine.step_ms()
        assert busy_mover.holdings.loadout.plan is plan


@pytest.mark.parametrize("first", [0, 0.15, 1.1], ids=["from the start", "after a small one", "after everything"])
def test_auto_is_as_fast_as_any_at_little_more_than_the_least(machine: Machine, first: float) -> None:
    mover = machine.attach(first)
    machine.settle(mover)
    machine.settle(machine.attach(0))
    auto_ms, auto_mb = machine.step_ms(20), mover.stats()["budget_mb"]
    sweep = {}
    for share in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1):
        machine.settle(machine.attach(share))
        sweep[mover.stats()["budget_mb"]] = machine.step_ms(20)
    best_ms = min(sweep.values())
    assert auto_ms <= 1.03 * best_ms
    least_mb = min(budget for budget, ms in sweep.items() if ms <= 1.02 * best_ms)  # what it promises
    if machine.launch_bound:  # it does not show how long it computes, so that its plan is a careful one
        assert auto_mb < machine.bytes / 2**20
    else:
        assert auto_mb <= 1.15 * least_mb + 0.1 * machine.bytes / 2**20


def test_checks_before_a_forward_count_as_launches_and_hinder_no_profile(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place = Masters.in_place

    def slow(masters: Masters) -> bool:
        machine.backend.host_ms += 2.0
        return in_place(masters)

    monkeypatch.setattr(Masters, "in_place", slow)
    mover = machine.attach(0.6)
    machine.settle(mover)
    assert machine.step_ms(20) == pytest.approx(mover.stats()["predicted_ms"], rel=0.06)


def test_a_profiled_forward_costs_no_wait(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.backend, "synchronize", lambda: pytest.fail("a forward waited for the device"))
    machine.settle(machine.attach(0.3))


def test_an_interrupted_profile_is_made_again(machine: Machine) -> None:
    mover = machine.attach(0.3)
    machine.step_ms(3)
    handle = machine.model.leaves[40].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    for _ in range(4):
        with pytest.raises(RuntimeError):
            machine.model(machine.x)
    handle.remove()
    machine.settle(mover)
    assert machine.step_ms(10) == pytest.approx(mover.stats()["predicted_ms"], rel=0.06)


def test_signatures_tell_shapes_and_dtypes_apart() -> None:
    x = torch.zeros(2, 3)
    assert signature_of((x,), {}) == signature_of((x + 1,), {})
    assert signature_of((x,), {}) != signature_of((x[:1],), {})
    assert signature_of((x,), {}) != signature_of((x.half(),), {})
    assert signature_of((x,), {"y": x}) != signature_of((x,), {})
    assert bracket.Tally().regular


def test_statistics_are_read_at_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page asks for them during an image: no search for a plan may hide in them."""
    mover = machine.attach(0.3)
    machine.settle(mover)
    monkeypatch.setattr("lib_async_mover.search.Search.at", lambda *_: pytest.fail("searched for a plan"))
    stats = mover.stats()
    assert "buffer" in stats["verdict"] and stats["predicted_ms"] > 0
