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

Ranges = tuple[tuple[int, int], ...]


def align(size: int) -> int:
    """`size` rounded up to the arena's alignment."""
    return (size + ALIGN - 1) // ALIGN * ALIGN


@dataclass(frozen=True, slots=True)
class Pieces:
    """Consecutive leaf ranges [first, stop): their slots in bytes, and their copy and compute times in ms."""

    ranges: Sequence[tuple[int, int]]
    sizes: Sequence[int]
    copy_ms: Sequence[float]
    compute_ms: Sequence[float]


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
        self._borders = sorted(workload.barriers)
        self.largest = max(align(leaf.bytes) for leaf in workload.leaves)
        self.everything = self.resident_bytes(())

    @cached_property
    def launching(self) -> Outline:
        """The same seen from the CPU, where launches bind: leaves last as long as it takes to launch them."""
        load = self.workload
        slower = load.scaled(load.launch_ms / load.compute_ms) if load.launch_ms > load.compute_ms > 0 else load
        overhead_ms = load.unit_overhead_ms + load.unit_launch_ms
        return Outline(replace(slower, launch_ms=0.0, unit_launch_ms=0.0, unit_overhead_ms=overhead_ms))

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
        return Pieces(ranges, self.sizes(ranges), copies, computes)

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
        launch_ms = load.launch_ms + load.unit_launch_ms * len(ranges)
        return Track(copies, computes, fifo_waits(sizes, ring), ms[firsts[0]], load.gap_ms, launch_ms)

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
