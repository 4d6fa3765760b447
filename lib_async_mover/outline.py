"""A workload in the form that the search works on: sums over leaves, so that any range of them is a subtraction."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Sequence

from lib_async_mover.placement import ALIGN, fifo_waits
from lib_async_mover.simulate import Schedule, Track, run
from lib_async_mover.workload import Workload

BRISK = 0.95
Ranges = tuple[tuple[int, int], ...]


def align(size: int) -> int:
    """`size` rounded up to the arena's alignment."""
    return (size + ALIGN - 1) // ALIGN * ALIGN


@dataclass(frozen=True, slots=True)
class Pieces:
    """Consecutive leaf ranges [first, stop): their slots in bytes, and their copy, compute and launch times in ms."""

    ranges: Sequence[tuple[int, int]]
    sizes: Sequence[int]
    copy_ms: Sequence[float]
    compute_ms: Sequence[float]
    issue_ms: Sequence[float]
    late_ms: Sequence[float]


class Outline:
    """
    Leaves as running sums: `bytes_at[i]` and `ms_at[i]` are what leaves before i take.

    `largest` is the largest leaf's slot, `everything` what all leaves take as residents, both in bytes.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.count = len(workload.leaves)
        self.bytes_at = [0, *accumulate(leaf.bytes for leaf in workload.leaves)]
        self.ms_at = [0.0, *accumulate(leaf.ms for leaf in workload.leaves)]
        self.compute_ms = self.ms_at[-1]
        self._each_ms = workload.launch_ms / self.count
        # How far the device is behind the start of a forward when a leaf has been launched, had it computed meanwhile.
        self._behind_ms = [(leaf + 1) * self._each_ms - ms for leaf, ms in enumerate(self.ms_at[:-1])]
        self._borders = sorted(workload.barriers)
        self.largest = max(align(leaf.bytes) for leaf in workload.leaves)
        self.everything = self.resident_bytes(())

    @cached_property
    def brisk(self) -> Outline:
        """The same with a CPU that launches faster than was measured."""
        return Outline(replace(self.workload, launch_ms=self.workload.launch_ms * BRISK))

    def pieces(self, grain: int) -> Pieces:
        """Leaves packed in order into pieces of up to `grain` bytes (a larger leaf alone), cut at barriers."""
        at, ms, rate = self.bytes_at, self.ms_at, self.workload.bytes_per_ms
        barriers = self.workload.barriers
        ranges, first = [], 0
        for index in range(1, self.count):
            if index in barriers or at[index + 1] - at[first] > grain:
                ranges.append((first, index))
                first = index
        ranges.append((first, self.count))
        copies = [(at[stop] - at[first]) / rate for first, stop in ranges]
        computes = [ms[stop] - ms[first] for first, stop in ranges]
        issues = [(stop - first) * self._each_ms for first, stop in ranges]
        lates = [self._late_ms(first, stop) for first, stop in ranges]
        return Pieces(ranges, self.sizes(ranges), copies, computes, issues, lates)

    def _late_ms(self, first: int, stop: int) -> float:
        """From when the CPU comes to leaf `first` to when all up to `stop` are computed; nothing else is waited for."""
        if first == stop:
            return 0.0
        return max(self._behind_ms[first:stop]) - first * self._each_ms + self.ms_at[stop]

    def sizes(self, ranges: Sequence[tuple[int, int]]) -> list[int]:
        """Slots of leaf ranges, in bytes."""
        at = self.bytes_at
        return [(at[stop] - at[first] + ALIGN - 1) // ALIGN * ALIGN for first, stop in ranges]

    def track(self, ranges: Sequence[tuple[int, int]], sizes: Sequence[int], ring: int) -> Track:
        """Streamed ranges as the pipeline sees them over an ideal ring of `ring` bytes."""
        at, ms, load = self.bytes_at, self.ms_at, self.workload
        rate, overhead_ms = load.bytes_per_ms, load.unit_overhead_ms
        copies = [(at[stop] - at[first]) / rate for first, stop in ranges]
        firsts = [first for first, _ in ranges]
        firsts.append(self.count)
        computes = [ms[after] - ms[first] + overhead_ms for first, after in pairwise(firsts)]
        launch_ms, each_ms, lead = load.unit_launch_ms, self._each_ms, firsts[0]
        issues = [launch_ms + (after - first) * each_ms for first, after in pairwise(firsts)]
        lates = [launch_ms + self._late_ms(first, after) for first, after in pairwise(firsts)]
        return Track(
            copies, computes, fifo_waits(sizes, ring), issues, lates, ms[lead], lead * each_ms, self._late_ms(0, lead),
            load.gap_ms,
        )  # fmt: skip

    def play(self, ranges: Sequence[tuple[int, int]], room: int) -> tuple[Track, Schedule] | None:
        """Over an ideal ring in what the residents leave of `room`; None if a unit does not fit it."""
        ring = room - self.resident_bytes(ranges)
        sizes = self.sizes(ranges)
        if max(sizes) > ring:
            return None
        track = self.track(ranges, sizes, ring)
        return track, run(track)

    def resident_ranges(self, streamed: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """What is not streamed, in as few ranges as the barriers allow."""
        ranges: list[tuple[int, int]] = []
        borders = self._borders
        position = 0
        for first, stop in [*streamed, (self.count, self.count)]:
            if first > position:
                inner = borders[bisect_right(borders, position) : bisect_left(borders, first)] if borders else ()
                for border in inner:
                    ranges.append((position, border))
                    position = border
                ranges.append((position, first))
            position = stop
        return ranges

    def resident_bytes(self, streamed: Sequence[tuple[int, int]]) -> int:
        """Slots of all leaves that are not in `streamed`."""
        return sum(self.sizes(self.resident_ranges(streamed)))
