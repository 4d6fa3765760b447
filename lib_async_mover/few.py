"""Models of so few leaves that every choice can be tried."""

from __future__ import annotations

from dataclasses import replace
from typing import Collection, Sequence

from lib_async_mover.merging import latest
from lib_async_mover.outline import Ranges
from lib_async_mover.simulate import Schedule, Track, run, slot_waits

FEW = 6  # leaves
_NODES = 3000
_NEAR_MS = 1e-9



def choices(count: int, barriers: Collection[int]) -> list[Ranges]:
    """Every way to stream some of `count` leaves: leaf ranges [first, stop); no range crosses a barrier."""
    found: list[Ranges] = [()]
    for leaf in range(count):
        longer: list[Ranges] = []
        for ranges in found:
            longer.append(ranges)
            longer.append((*ranges, (leaf, leaf + 1)))
            if ranges and ranges[-1][1] == leaf and leaf not in barriers:
                longer.append((*ranges[:-1], (ranges[-1][0], leaf + 1)))
        found = longer
    return [ranges for ranges in found if ranges]


def place_few(track: Track, sizes: Sequence[int], ring: int, ideal: Schedule) -> tuple[float, list[int]]:
    """
    The best placement of a few units in `ring` bytes: (step time in ms, offsets).

    Two slots that overlap cost what their owners then wait for each other beyond what is harmless in the ideal
    ring's schedule. Branch and bound over offsets for the least greatest cost; pushed to the left, every
    slot begins at a sum of others' sizes.
    """
    count = len(sizes)
    late = latest(track, ideal)
    period_ms = ideal.step_ms + track.gap_ms
    cost = [[0.0] * count for _ in range(count)]
    for after in range(count):
        for before in range(after):
            cost[after][before] = max(
                ideal.enter[before + 1] - late.begin[after],
                ideal.enter[after + 1] - period_ms - late.begin[before],
            )
    sums = {0}
    for size in sizes:
        sums |= {total + size for total in sums if total + size <= ring}
    positions = sorted(sums)
    best: tuple[float, list[int]] = float("inf"), []
    nodes = 0

    def descend(offsets: list[int], worst: float) -> None:
        nonlocal best, nodes
        unit = len(offsets)
        if unit == count:
            best = worst, list(offsets)
            return
        for start in positions:
            stop = start + sizes[unit]
            nodes += 1
            if stop > ring or best[0] <= _NEAR_MS or (nodes > _NODES and best[1]):
                return
            here = worst
            for other, offset in enumerate(offsets):
                if offset < stop and start < offset + sizes[other]:
                    here = max(here, cost[unit][other])
            if here < best[0]:
                offsets.append(start)
                descend(offsets, here)
                offsets.pop()

    descend([], 0.0)
    slots = [(offset, offset + size) for offset, size in zip(best[1], sizes, strict=True)]
    return run(replace(track, wait=slot_waits(slots))).step_ms, best[1]
