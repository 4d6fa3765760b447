"""The pipeline by itself: any slots, any order of entering, and no copy over what may still be read."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_async_mover.arena import Arena
from lib_async_mover.binding import Binding
from lib_async_mover.cpu import CpuBackend
from lib_async_mover.pipeline import Pipeline
from lib_async_mover.unit import Unit

ARENA_BYTES = 64


class Log(CpuBackend):
    """Records what the pipeline asks for; the race checker of the CPU backend is in force."""

    def __init__(self) -> None:
        super().__init__(poison=True)
        self.copied: list[int] = []
        self.acquired: list[int] = []

    def copy(self, unit: Unit, after: Unit | None) -> None:
        self.copied.append(unit.index)
        super().copy(unit, after)

    def acquire(self, unit: Unit) -> None:
        self.acquired.append(unit.index)
        super().acquire(unit)


def pipeline_of(slots: list[tuple[int, int, bool]]) -> tuple[Pipeline, list[Unit], Log]:
    backend = Log()
    arena = Arena(ARENA_BYTES + sum(size for _, size, resident in slots if resident), backend.device)
    units, floor = [], ARENA_BYTES
    for index, (offset, size, resident) in enumerate(slots):
        if resident:
            offset, floor = floor, floor + size
        offset = min(offset, arena.bytes - size)
        source = torch.full((size,), index + 1, dtype=torch.uint8)
        units.append(Unit(index, resident, source, arena.raw[offset : offset + size], offset, Binding([], {})))
    backend.take(arena)
    pipeline = Pipeline(backend, units)
    pipeline.forget()
    return pipeline, units, backend


slot = st.tuples(st.integers(0, ARENA_BYTES - 16), st.integers(1, 16), st.booleans())


@settings(max_examples=300, deadline=None)
@given(st.lists(slot, min_size=1, max_size=8), st.data())
def test_a_bound_unit_holds_its_bytes_in_any_order(slots: list[tuple[int, int, bool]], data: st.DataObject) -> None:
    pipeline, units, backend = pipeline_of(slots)
    regular = list(range(len(units)))
    for _ in range(data.draw(st.integers(1, 4))):
        pipeline.begin()
        bound: set[int] = set()
        order = data.draw(st.one_of(st.just(regular), st.lists(st.sampled_from(regular), max_size=10)))
        for index in order:
            unit = units[index]
            if index in bound and unit.resident:
                continue
            if pipeline.enter(unit):
                bound = {i for i in bound if units[i].resident} | {index}
                for i in bound:
                    assert units[i].target.eq(i + 1).all(), f"unit {i} after entering {index}"
        pipeline.finish()
    backend.close()


@settings(max_examples=200, deadline=None)
@given(st.lists(slot, min_size=1, max_size=8), st.integers(1, 5))
def test_in_order_every_streamed_unit_is_copied_once_a_forward(slots: list[tuple[int, int, bool]], rounds: int) -> None:
    pipeline, units, backend = pipeline_of(slots)
    for _ in range(rounds):
        pipeline.begin()
        for unit in units:
            if not unit.resident or unit not in pipeline._settled:
                assert pipeline.enter(unit)
        pipeline.finish()
    streamed = [unit.index for unit in units if not unit.resident]
    resident = [unit.index for unit in units if unit.resident]
    ran = [index for index in backend.copied if index in streamed]
    # Whole forwards, and then what the ring already holds of the next one: it wraps around.
    assert ran[: rounds * len(streamed)] == streamed * rounds
    assert ran[rounds * len(streamed) :] == streamed[: len(ran) - rounds * len(streamed)]
    assert sorted(index for index in backend.copied if index in resident) == resident
    assert [index for index in backend.acquired if index in streamed] == streamed * rounds
    if streamed:
        assert len(ran) > rounds * len(streamed), "nothing was prefetched for the next forward"
    backend.close()


def test_copies_run_ahead_by_what_the_ring_holds() -> None:
    pipeline, units, backend = pipeline_of([(0, 16, False), (16, 16, False), (32, 16, False), (0, 16, False)])
    pipeline.begin()
    assert backend.copied == [0, 1, 2]
    pipeline.enter(units[0])
    assert backend.copied == [0, 1, 2], "unit 3 lies over unit 0, which is bound"
    pipeline.enter(units[1])
    assert backend.copied == [0, 1, 2, 3]
    backend.close()


def test_residents_are_copied_in_their_place_of_the_order() -> None:
    pipeline, _, backend = pipeline_of([(0, 16, False), (0, 16, True), (16, 16, False), (0, 16, True)])
    pipeline.begin()
    assert backend.copied == [0, 1, 2, 3]
    backend.close()


def test_a_refreshed_unit_is_copied_again() -> None:
    pipeline, units, backend = pipeline_of([(0, 16, False), (0, 16, True), (16, 16, False)])
    pipeline.begin()
    for unit in units:
        pipeline.enter(unit)
    pipeline.finish()
    backend.synchronize()
    for unit in units:
        unit.source.fill_(77)
        pipeline.refresh(unit)
    pipeline.begin()
    for unit in units:
        pipeline.enter(unit)
        assert unit.target.eq(77).all()
    pipeline.finish()
    backend.close()
