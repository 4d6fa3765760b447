"""The pipeline by itself: any slots, any order of fetches, and no copy over what may still be read."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib_async_mover.device.backend import Copy, Done
from lib_async_mover.memory.arena import Arena
from lib_async_mover.memory.host_store import HostStore
from lib_async_mover.memory.leaf import Leaf
from lib_async_mover.run.binding import Binding, twin_of
from lib_async_mover.run.pipeline import Pipeline
from lib_async_mover.run.unit import Residence, Unit
from tests.checked_backend import CheckedBackend

RING_BYTES = 64


class Log(CheckedBackend):
    """Records what the pipeline asks for, by unit number; the race checker of the CPU backend is in force."""

    def __init__(self) -> None:
        super().__init__(poison=True)
        self.copied: list[int] = []
        self.waited_for: list[int] = []

    def copy(self, source: torch.Tensor, target: torch.Tensor, pinned: bool, after: Done | None) -> Copy:
        self.copied.append(int(source[0]) - 1)
        return super().copy(source, target, pinned, after)

    def wait_for_copy(self, copy: Copy) -> None:
        self.waited_for.append(int(copy.source[0]) - 1)
        super().wait_for_copy(copy)


def pipeline_of(slots: list[tuple[int, int, bool]]) -> tuple[Pipeline, list[Unit], Log]:
    """Units of (offset, bytes, resident), full of their number plus one; residents lie behind the ring."""
    backend = Log()
    arena = Arena(RING_BYTES + sum(size for _, size, resident in slots if resident), backend.device)
    units, behind = [], RING_BYTES
    modules = nn.ModuleDict()
    store = HostStore(modules, [], [], Leaf("", []), None)
    for index, (offset, size, resident) in enumerate(slots):
        if resident:
            offset, behind = behind, behind + size
        source = torch.full((size,), index + 1, dtype=torch.uint8)
        target = arena.raw[offset : offset + size]
        module = modules[str(index)] = nn.Module()
        module.register_buffer("weight", source)
        binding = Binding([Leaf(str(index), [module])], {id(source): twin_of(source, target)})
        units.append(Unit(index, resident, source, True, target, binding, store))
    backend.memory_taken(arena.raw)
    pipeline = Pipeline(backend, units, store)
    pipeline.modules = modules  # a leaf keeps none alive
    backend.fence_copies()
    return pipeline, units, backend


def run(pipeline: Pipeline, units: list[Unit]) -> None:
    """A forward in order."""
    pipeline.start_forward(False, False)
    for unit in units:
        if unit.residence is not Residence.BOUND:
            assert pipeline.fetch(unit)
        assert unit.target.eq(unit.source).all()
    pipeline.end_forward()


slot = st.tuples(st.integers(0, RING_BYTES - 16), st.integers(1, 16), st.booleans())


@settings(max_examples=150, deadline=None)
@given(st.lists(slot, min_size=1, max_size=8), st.data())
def test_a_bound_unit_holds_its_bytes_in_any_order(slots: list[tuple[int, int, bool]], data: st.DataObject) -> None:
    pipeline, units, backend = pipeline_of(slots)
    regular = list(range(len(units)))
    for _ in range(data.draw(st.integers(1, 4))):
        pipeline.start_forward(data.draw(st.booleans()), data.draw(st.booleans()))
        streamed = None
        order = data.draw(st.one_of(st.just(regular), st.lists(st.sampled_from(regular), max_size=10)))
        for index in order:
            unit = units[index]
            if unit.residence is Residence.BOUND:
                continue
            if pipeline.fetch(unit) and not unit.resident:
                streamed = unit
            for bound in [u for u in units if u.residence is Residence.BOUND] + [streamed] * (streamed is not None):
                assert bound.target.eq(bound.source).all(), f"unit {bound.index} after fetching {index}"
        pipeline.end_forward()
        for index in data.draw(st.lists(st.sampled_from(regular), max_size=2)):
            units[index].source.add_(0)  # a write, whatever it writes
    backend.close()


@settings(max_examples=100, deadline=None)
@given(st.lists(slot, min_size=1, max_size=8), st.integers(1, 5))
def test_in_order_every_streamed_unit_is_copied_once_a_forward(slots: list[tuple[int, int, bool]], rounds: int) -> None:
    pipeline, units, backend = pipeline_of(slots)
    for _ in range(rounds):
        run(pipeline, units)
    streamed = [unit.index for unit in units if not unit.resident]
    resident = [unit.index for unit in units if unit.resident]
    ran = [index for index in backend.copied if index in streamed]
    # Whole forwards, and then what the ring already holds of the next one: it wraps around.
    assert ran[: rounds * len(streamed)] == streamed * rounds
    assert ran[rounds * len(streamed) :] == streamed[: len(ran) - rounds * len(streamed)]
    assert sorted(index for index in backend.copied if index in resident) == resident
    assert [index for index in backend.waited_for if index in streamed] == streamed * rounds
    if streamed:
        assert len(ran) > rounds * len(streamed), "nothing was copied ahead for the next forward"
    backend.close()


def test_copies_run_ahead_by_what_the_ring_holds() -> None:
    pipeline, units, backend = pipeline_of([(0, 16, False), (16, 16, False), (32, 16, False), (0, 16, False)])
    pipeline.start_forward(False, False)
    assert backend.copied == [0, 1, 2]
    pipeline.fetch(units[0])
    assert backend.copied == [0, 1, 2], "unit 3 lies over unit 0, which is bound"
    pipeline.fetch(units[1])
    assert backend.copied == [0, 1, 2, 3]
    backend.close()


def test_residents_are_copied_in_their_place_of_the_order() -> None:
    pipeline, _, backend = pipeline_of([(0, 16, False), (0, 16, True), (16, 16, False), (0, 16, True)])
    pipeline.start_forward(False, False)
    assert backend.copied == [0, 1, 2, 3]
    backend.close()


def test_what_was_waited_for_is_waited_for_again_on_another_stream() -> None:
    pipeline, units, backend = pipeline_of([(0, 16, True), (16, 16, True)])
    run(pipeline, units)
    for stream_changed in (False, True):
        pipeline.start_forward(stream_changed, False)
        assert (units[1].residence is Residence.BOUND) is not stream_changed
        pipeline.end_forward()
    pipeline.start_forward(True, False)
    for unit in units:
        pipeline.fetch(unit)
    assert backend.waited_for == [0, 1, 0, 1] and backend.copied == [0, 1]
    backend.close()


def test_what_was_written_to_is_copied_again() -> None:
    pipeline, units, backend = pipeline_of([(0, 16, False), (0, 16, True), (16, 16, False)])
    run(pipeline, units)
    backend.synchronize()
    for unit in units:
        unit.source.fill_(77)
    run(pipeline, units)
    backend.close()
