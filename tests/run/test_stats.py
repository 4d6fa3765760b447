"""What a mover says about itself: bytes as they went, and labels in torch's profiler."""

from __future__ import annotations

import logging

import pytest
from torch.profiler import ProfilerActivity, profile

from lib_async_mover.plan.workload import MIB
from tests.pair import Pair


def test_what_is_loaded_on_demand_counts_as_bytes_of_the_step() -> None:
    pair = Pair()
    assert pair.mover.stats()["state"] == "tracing" and pair.mover.stats()["bytes_per_step"] == 0
    pair.run()
    stats = pair.mover.stats()
    everything = stats["bytes_per_step"]
    assert stats["on_demand_loads"] == 22
    pair.settle()
    stats = pair.mover.stats()
    assert everything == pytest.approx(stats["weights_mib"] * MIB, rel=0.01)
    assert 0 < stats["bytes_per_step"] == pair.mover.plan.streamed_bytes < everything
    pair.both(lambda model: setattr(model, "path", (5, 4, 3, 2, 1, 0)))
    pair.run()
    assert pair.mover.stats()["bytes_per_step"] > pair.mover.plan.streamed_bytes
    pair.both(lambda model: setattr(model, "path", range(6)))
    pair.run(times=2)
    assert pair.mover.stats()["bytes_per_step"] == pair.mover.plan.streamed_bytes
    pair.close()


def test_copies_waits_and_bindings_are_labelled_in_a_profile(pair: Pair) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as record:
        pair.run()
    counts = {event.key: event.count for event in record.key_averages()}
    units = pair.mover.plan.streamed_units
    assert {counts.get(f"async_lowvram::{name}", 0) >= units for name in ("copy", "wait", "bind")} == {True}


def test_a_plan_is_told_once_for_a_size_and_once_it_is_measured(caplog: pytest.LogCaptureFixture) -> None:
    pair = Pair(share=0.4)
    with caplog.at_level(logging.INFO, "async_lowvram"):
        pair.settle()
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 3 and "packed" in told[0] and "predicted" not in told[1] and "predicted" in told[2]
        pair.run(times=10)
        assert len(caplog.records) == 3
    pair.close()
