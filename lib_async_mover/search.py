"""The search for the fastest plan in a given number of bytes: what is streamed, in which pieces, over which ring."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Sequence

from lib_async_mover.few import FEW, choices, place_few
from lib_async_mover.limit import limit_ms
from lib_async_mover.merging import harms, latest, merge
from lib_async_mover.placement import ALIGN, fifo_waits, place
from lib_async_mover.refine import refine
from lib_async_mover.residents import Pieces, fit
from lib_async_mover.simulate import Schedule, Track, run, slot_waits
from lib_async_mover.workload import Workload

_GRAINS = (400, 128)  # pieces per model, roughly
_RINGS = (1.0, 0.45, 0.25)  # of the room
_TRIES = 192  # layouts of a candidate
_COARSE = 16  # budgets below 1/16 of the largest leaf count as none
_REFINED = 1  # candidates that are refined, with so many simulations each
_PLAYS = 24
_PLACED = 4  # candidates that get layouts
_SHARES = (4, 2)  # a merged unit is at most this part of the ring
_WORTH = 0.997
_SAME = 1 + 1e-9
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
        self.grid = self._budgets()

    def best(self, budget_bytes: int) -> Candidate:
        """The best candidate at any grid point up to `budget_bytes`: more budget is never slower."""
        index = bisect_right(self.grid, budget_bytes) - 1
        best = self.at_budget(self.grid[index])
        for budget in reversed(self.grid[:index]):
            if self._least_ms(budget) >= best.step_ms * (1 - 1e-12):
                break  # nor can any smaller one be better
            other = self.at_budget(budget)
            if other.step_ms < best.step_ms:
                best = other
        return best

    def at_budget(self, budget_bytes: int) -> Candidate:
        """The best candidate found at this very budget; a smaller one may do better."""
        return self.at(max(0, budget_bytes - self.workload.fixed_bytes) // ALIGN * ALIGN)

    def _least_ms(self, budget_bytes: int) -> float:
        """No candidate at this budget is faster: the limit, and the overhead of as few units as there can be."""
        load = self.workload
        room = budget_bytes - load.fixed_bytes
        least_ms = limit_ms(load, budget_bytes)
        if room >= self.largest and room < self.everything:
            # A unit is at most a share of the ring, or one leaf, or one piece: see _merges.
            piece = max(self.largest, self.everything // min(_GRAINS))
            units = min(self.everything * min(_SHARES) // room, (self.everything - room) // piece)
            least_ms = max(least_ms, self.ms_at[-1] + units * load.unit_overhead_ms)
        return least_ms

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
            elif self.count > FEW and limit_ms(load, budget * 3 // 4) <= self.ms_at[-1] * _SAME:
                step = _power(budget // 8)
            else:
                step = _power(min(budget // (16 if self.count > FEW else 64), self.everything // 128))
            grid.append(budget)
            step = max(step, ALIGN)
            budget = min(budget + step, least) if budget < least else (budget // step + 1) * step
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
        if self.count <= FEW:
            return self._of_few(room)
        merged = sorted(self._merged(room))
        refined = []
        for _, ranges in merged[:_REFINED]:
            refined.append(
                refine(
                    ranges,
                    lambda moved: self._played(moved, room),
                    self.bytes_at,
                    self.workload.barriers,
                    self.workload.unit_overhead_ms,
                    _PLAYS,
                )
            )
        best: Candidate | None = None
        for ideal_ms, ranges in sorted(refined + merged[:_PLACED]):
            if best is None or ideal_ms < best.step_ms:  # no placement is faster than the ideal ring
                placed = self._placed(ranges, room)
                if best is None or placed.step_ms < best.step_ms:
                    best = placed
        assert best is not None  # everything streamed is always among the starts
        return best

    def _of_few(self, room: int) -> Candidate:
        """Every choice of units and residents, where leaves are so few that all can be tried."""
        ideals = []
        for ranges in choices(self.count, self.workload.barriers):
            played = self._played(ranges, room)
            if played is not None:
                ideals.append((played[1].step_ms, ranges))
        ideals.sort()
        best: Candidate | None = None
        for ideal_ms, ranges in ideals:
            if best is not None and ideal_ms >= best.step_ms * (1 - 1e-9):
                break
            placed = self._placed(ranges, room)
            if best is None or placed.step_ms < best.step_ms:
                best = placed
        assert best is not None  # every leaf fits the room, so single leaves in a ring do
        return best

    def _merged(self, room: int) -> list[tuple[float, Ranges]]:
        """Choices of what is streamed, in merged units: (step time over an ideal ring, ranges)."""
        load = self.workload
        rate, overhead_ms = load.bytes_per_ms, load.unit_overhead_ms
        least_ms = limit_ms(load, room + load.fixed_bytes)
        best_ms = least_ms * _SLOWEST
        excess = self.everything - room
        rings = {int(room * share) for share in _RINGS} | {2 * self.largest}
        if (excess + 2 * self.largest) / rate > least_ms:  # every byte of ring costs time: try small ones
            rings |= {self.largest, self.largest // 2}
        results: list[tuple[float, Ranges]] = []
        seen: set[Ranges] = set()
        for parts in _GRAINS:
            grain = min(self.everything // parts, room // 2)
            pieces = self.pieces(grain)
            for ring in sorted(rings, reverse=True):
                if ring == room:
                    flags: Sequence[bool] | None = [True] * len(pieces.ranges)
                elif ring > room or grain * 3 > ring or (excess + ring) / rate > best_ms:
                    continue
                else:
                    flags = fit(pieces, room, ring, best_ms - self.ms_at[-1], overhead_ms, load.gap_ms)
                if not flags or not any(flags):
                    continue
                ranges = tuple(piece for piece, flag in zip(pieces.ranges, flags, strict=True) if flag)
                if ranges in seen:
                    continue
                seen.add(ranges)
                played = self._played(ranges, room)
                # All that merging can save is the overhead.
                if played is None or (results and played[1].step_ms - overhead_ms * len(ranges) > best_ms):
                    continue
                results.extend(self._merges(ranges, played, room))
                best_ms = min(best_ms, results[-1][0])
        return results

    def _merges(self, ranges: Ranges, played: tuple[Track, Schedule], room: int) -> list[tuple[float, Ranges]]:
        """Harmless merges until there are none, for a few largest sizes of a unit."""
        barriers = self.workload.barriers
        results: list[tuple[float, Ranges]] = []
        for share in _SHARES:
            every = 1
            while every <= 2:
                track, schedule = played
                largest = (room - self.resident_bytes(ranges)) // share
                sizes = self.sizes(ranges)
                harm_ms = harms(ranges, barriers, track, schedule, latest(track, schedule))
                merged = tuple(merge(ranges, sizes, largest, harm_ms, every))
                if len(merged) < len(ranges):
                    other = self._played(merged, room)
                    if other is not None and other[1].step_ms <= schedule.step_ms:
                        ranges, played = merged, other
                        continue
                every += 1
            if not results or played[1].step_ms < results[-1][0] * _WORTH:
                results.append((played[1].step_ms, ranges))
        return results

    def _played(self, ranges: Ranges, room: int) -> tuple[Track, Schedule] | None:
        """Over an ideal ring in what the residents leave of `room`; None if a unit is larger than that."""
        ring = room - self.resident_bytes(ranges)
        sizes = self.sizes(ranges)
        if max(sizes) > ring:
            return None
        track = self.track(ranges, sizes, ring)
        return track, run(track)

    def _placed(self, ranges: Ranges, room: int) -> Candidate:
        resident = self.resident_bytes(ranges)
        ring = room - resident
        sizes = self.sizes(ranges)
        track = self.track(ranges, sizes, ring)
        ideal = run(track)
        step_ms, offsets = place(track, sizes, ring, ideal, _TRIES)
        if self.count <= FEW and step_ms > ideal.step_ms * _SAME:
            step_ms, offsets = min((step_ms, offsets), place_few(track, sizes, ring, ideal))
        used = max(offset + size for offset, size in zip(offsets, sizes, strict=True))
        return Candidate(step_ms, ranges, tuple(offsets), resident, used)

    def _too_small(self, room: int) -> Candidate:
        """A plain ring, in which leaves larger than `room` lie across everything."""
        best: Candidate | None = None
        for parts in (3, 8):
            ranges = self.pieces(room // parts).ranges
            sizes = self.sizes(ranges)
            track = self.track(ranges, sizes, room)
            offsets, position = [], 0
            for size in sizes:
                position = position if position + size <= room else 0
                offsets.append(position)
                position += size
            everything = (0, max(sizes))
            slots = [
                everything if size > room else (offset, offset + size) for offset, size in zip(offsets, sizes, strict=True)
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

    def sizes(self, ranges: Sequence[tuple[int, int]]) -> list[int]:
        """Slot sizes of streamed ranges, in bytes."""
        at = self.bytes_at
        return [(at[stop] - at[first] + ALIGN - 1) // ALIGN * ALIGN for first, stop in ranges]

    def track(self, ranges: Sequence[tuple[int, int]], sizes: Sequence[int], ring: int) -> Track:
        """Streamed ranges as the pipeline sees them over an ideal ring."""
        at, ms, load = self.bytes_at, self.ms_at, self.workload
        rate, overhead_ms = load.bytes_per_ms, load.unit_overhead_ms
        copies = [(at[stop] - at[first]) / rate for first, stop in ranges]
        firsts = [first for first, _ in ranges]
        firsts.append(self.count)
        computes = [ms[after] - ms[first] + overhead_ms for first, after in pairwise(firsts)]
        return Track(copies, computes, fifo_waits(sizes, ring), ms[firsts[0]], load.gap_ms)

    def resident_ranges(self, streamed: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """What is not streamed, in as few ranges as the barriers allow."""
        ranges: list[tuple[int, int]] = []
        position = 0
        for first, stop in [*streamed, (self.count, self.count)]:
            if first > position:
                cuts = [position, *(border for border in self.borders if position < border < first), first]
                ranges.extend(pairwise(cuts))
            position = stop
        return ranges

    def resident_bytes(self, streamed: Sequence[tuple[int, int]]) -> int:
        """Slots of all leaves that are not in `streamed`."""
        at = self.bytes_at
        return sum(align(at[stop] - at[first]) for first, stop in self.resident_ranges(streamed))


@lru_cache(maxsize=8)
def search_of(workload: Workload) -> Search:
    """The one search of a workload; equal workloads share it."""
    return Search(workload)
