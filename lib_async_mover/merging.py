"""
Fewer, larger units where that costs nothing.

A streamed unit costs time on the compute stream, so two neighbours should be one unit, unless somebody waits for
it: larger units arrive later, need more room at once and are given back later. How much later is harmless
everywhere follows from one backward pass over the schedule, as in the critical path method (Kelley & Walker 1959),
here on a schedule that repeats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Collection, Sequence

from lib_async_mover.simulate import Schedule, Track

_FAR = 1e30
NEAR_MS = 1e-9
_FORWARDS = 3


@dataclass(frozen=True, slots=True)
class Latest:
    """How late a unit may be entered and its copy may begin, in ms on the schedule's clock, at no cost."""

    enter: Sequence[float]
    begin: Sequence[float]


def latest(track: Track, schedule: Schedule) -> Latest:
    """The backward pass, over three forwards: a delay that shows only later is not harmless."""
    count = len(track.copy_ms)
    period_ms = schedule.step_ms + track.gap_ms
    rows = list(zip(range(count), track.copy_ms, track.compute_ms, track.wait, strict=True))[::-1]
    enter: list[float] = []
    begin: list[float] = []
    for number in range(_FORWARDS):
        limits = [_FAR] * (count + 1)  # on unit w's entry, by copies that wait for it
        following = _FAR
        if number == 0:
            limits[count] = schedule.enter[count]
        else:  # what the forward after this one asks for, on this one's clock
            for j, wait in enumerate(track.wait):
                if wait > j:
                    limits[wait] = min(limits[wait], begin[j] + period_ms)
            limits[count] = min(limits[count], enter[0] + period_ms - track.gap_ms - track.lead_ms)
            following = begin[0] + period_ms
        begin = [0.0] * count
        for j, copy_ms, compute_ms, wait in rows:
            start = limits[j + 1] - compute_ms
            begin[j] = following = (start if start < following else following) - copy_ms
            if wait <= j and following < limits[wait]:
                limits[wait] = following
            if start < limits[j]:
                limits[j] = start
        enter = limits
    return Latest(enter, begin)


def harms(
    ranges: Sequence[tuple[int, int]], borders: Collection[int], track: Track, schedule: Schedule, late: Latest
) -> list[float]:
    """
    For every unit but the last: how much later than harmless (ms) some event would be if it were one with the next.

    0: harmless. Infinite: not neighbours, or a leaf index in `borders` lies between them.
    """
    count = len(ranges)
    period_ms = schedule.step_ms + track.gap_ms
    enter, latest_enter, latest_begin = schedule.enter, late.enter, late.begin
    waiting = given_back(track, schedule, late)
    result = []
    for j in range(count - 1):
        border = ranges[j + 1][0]
        if ranges[j][1] != border or border in borders:
            result.append(_FAR)
            continue
        wait = track.wait[j + 1]
        result.append(
            max(
                0.0,
                # it arrives only when both have arrived,
                schedule.end[j + 1] - latest_enter[j + 1] + track.compute_ms[j],
                # needs room for both at once,
                enter[wait] - (period_ms if wait > j + 1 else 0.0) - latest_begin[j],
                # and is given back when both are done
                enter[j + 2] - waiting[j + 1],
            )
        )
    return result


def given_back(track: Track, schedule: Schedule, late: Latest) -> list[float]:
    """Per unit w (n: the end), how late it may be entered for the sake of copies that wait for that, in ms."""
    period_ms = schedule.step_ms + track.gap_ms
    limits = [_FAR] * (len(track.wait) + 1)
    for j, wait in enumerate(track.wait):
        begin = late.begin[j] + (period_ms if wait > j else 0.0)
        if begin < limits[wait]:
            limits[wait] = begin
    return limits


def merge(
    ranges: Sequence[tuple[int, int]], sizes: Sequence[int], largest: int, harm_ms: Sequence[float], every: int = 1
) -> list[tuple[int, int]]:
    """
    The ranges with neighbours merged in pairs, where each merge alone is harmless, up to `largest` bytes.

    With `every` = 2 only every second harmless merge is done: they were judged one by one, and together they may
    cost something. The caller plays the result to find out.
    """
    merged: list[tuple[int, int]] = []
    last = len(ranges) - 1
    harmless = 0
    j = 0
    while j < last:
        if harm_ms[j] <= NEAR_MS and sizes[j] + sizes[j + 1] <= largest:
            harmless += 1
            if harmless % every == 0:
                merged.append((ranges[j][0], ranges[j + 1][1]))
                j += 2
                continue
        merged.append(ranges[j])
        j += 1
    if j == last:
        merged.append(ranges[j])
    return merged
