"""The search for the fastest plan in a given number of bytes: what is streamed, in which pieces, over which ring."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Sequence

from lib_async_mover.limit import limit_ms
from lib_async_mover.merging import merge
from lib_async_mover.placement import fifo_waits, place
from lib_async_mover.residents import Pieces, fit
from lib_async_mover.simulate import Schedule, Track, run, slot_waits
from lib_async_mover.workload import Workload

ALIGN = 512
_GRAINS = (400, 64)  # pieces per model, roughly
_RINGS = (1.0, 0.45, 0.25)  # of the room
_TRIES = 64  # layouts of a candidate
_COARSE = 16  # budgets below 1/16 of the largest leaf count as none
_PLACED = 3  # candidates that get layouts
_SLOWEST = 1.08  # × limit: the waiting that is worth a look

Ranges = tuple[tuple[int, int], ...]


def align(size: int) -> int:
    """`size` rounded up to the arena's alignment."""
    return (size + ALIGN - 1) // ALIGN * ALIGN


@dataclass(frozen=True, slots=True)
class Candidate:
    """
    A way to run the model: leaf ranges that are streamed, their offsets in a ring of `ring_bytes`.

    All other leaves are resident, `resident_bytes` in all. `step_ms` is simulated with these offsets.
    """

    step_ms: float
    streamed: Ranges
    offsets: tuple[int, ...]
    resident_bytes: int
    ring_bytes: int


def _power(size: int) -> int:
    """The largest power of two up to `size`; grid points are round numbers of MiB."""
    return 1 << max(0, size.bit_length() - 1)


class Search:
    """Candidates of one workload, by room (bytes for residents and ring). Deterministic; every room once."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        leaves = workload.leaves
        self.count = len(leaves)
        self.bytes_at = [0, *accumulate(leaf.bytes for leaf in leaves)]
        self.ms_at = [0.0, *accumulate(leaf.ms for leaf in leaves)]
        self.borders = sorted({0, *workload.barriers, self.count})
        self.largest = max(align(leaf.bytes) for leaf in leaves)
        self.everything = self.resident_bytes(())
        self._found: dict[int, Candidate] = {}
        self._grid = self._budgets()

    def best(self, budget_bytes: int) -> Candidate:
        """The best candidate at any grid point up to `budget_bytes`: more budget is never slower."""
        fixed = self.workload.fixed_bytes
        index = bisect_right(self._grid, budget_bytes) - 1
        best = self.at(max(0, self._grid[index] - fixed))
        for budget in reversed(self._grid[:index]):
            if limit_ms(self.workload, budget) >= best.step_ms * (1 - 1e-12):
                break  # nor can any smaller one be better
            other = self.at(max(0, budget - fixed))
            if other.step_ms < best.step_ms:
                best = other
        return best

    def _budgets(self) -> list[int]:
        """
        The grid, ascending: 0, steps of about 1/16 and at most 1/128 of all weights, and what holds everything.

        Coarser where the budget is too small for the largest leaf, and where more budget cannot help much.
        """
        load = self.workload
        full, least = load.fixed_bytes + self.everything, load.fixed_bytes + self.largest
        grid = [0]
        budget = load.fixed_bytes + self.largest // _COARSE
        while budget < full:
            if budget < least:
                step = min(_power(budget // 4), least - budget)
            elif limit_ms(load, budget) <= self.ms_at[-1] * (1 + 1e-9):
                step = _power(budget // 8)
            else:
                step = _power(min(budget // 16, self.everything // 128))
            grid.append(budget)
            step = max(step, ALIGN)
            budget = budget + step if budget < least else (budget // step + 1) * step
        grid.append(full)
        return grid

    def at(self, room: int) -> Candidate:
        """The best candidate found that takes at most `room` bytes; larger leaves get slots at the ring's start."""
        if room not in self._found:
            self._found[room] = self._at(room)
        return self._found[room]

    def _at(self, room: int) -> Candidate:
        if room >= self.everything:
            return Candidate(self.ms_at[-1], (), (), self.everything, 0)
        if room < self.largest:
            return self._too_small(room)
        merged = sorted(self._merged(start, room) for start in self._starts(room))
        best: Candidate | None = None
        for ideal_ms, ranges in merged[:_PLACED]:
            if best is None or ideal_ms < best.step_ms:  # no placement is faster than the ideal ring
                placed = self._placed(ranges, room)
                if best is None or placed.step_ms < best.step_ms:
                    best = placed
        assert best is not None  # everything streamed is always among the starts
        return best

    def _starts(self, room: int) -> list[Ranges]:
        """Choices of streamed pieces, before merging."""
        load = self.workload
        most_ms = limit_ms(load, room + load.fixed_bytes) * _SLOWEST - self.ms_at[-1]
        starts: list[Ranges] = []
        rings = [int(room * share) for share in _RINGS]
        rings.append(2 * self.largest)
        for grain in _GRAINS:
            pieces = self.pieces(min(self.everything // grain, room // 2))
            for ring in rings:
                if not self.largest <= ring <= room:
                    continue
                if ring == room:
                    flags: Sequence[bool] | None = [True] * len(pieces.ranges)
                else:
                    flags = fit(pieces, room, ring, most_ms, load.unit_overhead_ms, load.gap_ms)
                if flags and any(flags):
                    ranges = tuple(piece for piece, flag in zip(pieces.ranges, flags) if flag)
                    if ranges not in starts and self.resident_bytes(ranges) + self.biggest(ranges) <= room:
                        starts.append(ranges)
        return starts

    def _merged(self, ranges: Ranges, room: int) -> tuple[float, Ranges]:
        """Harmless merges until there are none: (step time over an ideal ring, ranges)."""
        ring = room - self.resident_bytes(ranges)
        track, sizes = self.track(ranges, ring)
        schedule = run(track)
        every = 1
        while True:
            merged = tuple(merge(ranges, sizes, ring // 4, self.workload.barriers, track, schedule, every))
            if len(merged) < len(ranges):
                new_ring = room - self.resident_bytes(merged)
                new_track, new_sizes = self.track(merged, new_ring)
                new_schedule = run(new_track)
                if new_schedule.step_ms <= schedule.step_ms:
                    ranges, ring, track, sizes, schedule = merged, new_ring, new_track, new_sizes, new_schedule
                    continue
            if every > 1:
                return schedule.step_ms, ranges
            every = 2

    def _placed(self, ranges: Ranges, room: int) -> Candidate:
        resident = self.resident_bytes(ranges)
        ring = room - resident
        track, sizes = self.track(ranges, ring)
        step_ms, offsets = place(track, sizes, ring, run(track), _TRIES)
        used = max(offset + size for offset, size in zip(offsets, sizes))
        return Candidate(step_ms, ranges, tuple(offsets), resident, used)

    def _too_small(self, room: int) -> Candidate:
        """A plain ring, in which leaves larger than `room` lie across everything."""
        best: Candidate | None = None
        for parts in (3, 8):
            ranges = self.pieces(room // parts).ranges
            track, sizes = self.track(ranges, room)
            offsets, position = [], 0
            for size in sizes:
                position = position if position + size <= room else 0
                offsets.append(position)
                position += size
            everything = (0, max(sizes))
            slots = [
                everything if size > room else (offset, offset + size) for offset, size in zip(offsets, sizes)
            ]
            found = run(Track(track.copy_ms, track.compute_ms, slot_waits(slots), track.lead_ms, track.gap_ms))
            if best is None or found.step_ms < best.step_ms:
                best = Candidate(found.step_ms, tuple(ranges), tuple(offsets), 0, max(stop for _, stop in slots))
        assert best is not None
        return best

    def pieces(self, grain: int) -> Pieces:
        """Leaves packed in order into pieces of up to `grain` bytes (a larger leaf alone), cut at barriers."""
        at, rate = self.bytes_at, self.workload.bytes_per_ms
        barriers = self.workload.barriers
        ranges, first = [], 0
        for index in range(1, self.count):
            if index in barriers or at[index + 1] - at[first] > grain:
                ranges.append((first, index))
                first = index
        ranges.append((first, self.count))
        return Pieces(
            ranges,
            [align(at[stop] - at[first]) for first, stop in ranges],
            [(at[stop] - at[first]) / rate for first, stop in ranges],
            [self.ms_at[stop] - self.ms_at[first] for first, stop in ranges],
        )

    def track(self, ranges: Sequence[tuple[int, int]], ring: int) -> tuple[Track, list[int]]:
        """Streamed ranges as the pipeline sees them over an ideal ring, and their slot sizes in bytes."""
        at, ms, load = self.bytes_at, self.ms_at, self.workload
        sizes = [align(at[stop] - at[first]) for first, stop in ranges]
        rate = load.bytes_per_ms
        copies = [(at[stop] - at[first]) / rate for first, stop in ranges]
        nexts = [first for first, _ in ranges[1:]] + [self.count]
        computes = [ms[after] - ms[first] + load.unit_overhead_ms for (first, _), after in zip(ranges, nexts)]
        lead_ms = ms[ranges[0][0]]
        return Track(copies, computes, fifo_waits(sizes, ring), lead_ms, load.gap_ms), sizes

    def resident_ranges(self, streamed: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """What is not streamed, in as few ranges as the barriers allow."""
        ranges = []
        position = 0
        for first, stop in [*streamed, (self.count, self.count)]:
            if first > position:
                cuts = [position, *(border for border in self.borders if position < border < first), first]
                ranges.extend(zip(cuts, cuts[1:]))
            position = stop
        return ranges

    def resident_bytes(self, streamed: Sequence[tuple[int, int]]) -> int:
        """Slots of all leaves that are not in `streamed`."""
        at = self.bytes_at
        return sum(align(at[stop] - at[first]) for first, stop in self.resident_ranges(streamed))

    def biggest(self, ranges: Sequence[tuple[int, int]]) -> int:
        """The largest slot among `ranges`."""
        return max(align(self.bytes_at[stop] - self.bytes_at[first]) for first, stop in ranges)


@lru_cache(maxsize=8)
def search_of(workload: Workload) -> Search:
    """The one search of a workload; equal workloads share it."""
    return Search(workload)
