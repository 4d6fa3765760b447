"""Where streamed units live in the ring. Sizes and offsets in bytes, relative to the start of the ring."""

from __future__ import annotations

from dataclasses import replace
from typing import Collection, Sequence

from lib_async_mover.merging import Latest, latest
from lib_async_mover.simulate import Schedule, Track, run, slot_waits

ALIGN = 512
_FIRSTS = 24
_WINNERS = 3
_NEAR_MS = 1e-6
_FAR = float("inf")
_GOLDEN = 0.7548776662466927  # the additive recurrence R2: two numbers that spread points evenly over a square
_SILVER = 0.5698402909980532  # (M. Roberts, 2018, "The unreasonable effectiveness of quasirandom sequences")


def fifo_waits(sizes: Sequence[int], ring: int) -> list[int]:
    """
    `Track.wait` for an ideal ring: a unit fits as soon as it and all before it that are still held fit `ring`.

    No fixed placement beats it as long as units are copied and freed in one order; `place` comes close to it.
    """
    count, total = len(sizes), sum(sizes)
    starts, position = [], 0
    for size in sizes:
        starts.append(position)
        position += size
    starts += [start + total for start in starts]
    waits = []
    oldest = 0  # the oldest unit of the last two forwards that may still be held
    for j in range(count):
        need = starts[j + count] + sizes[j] - ring
        while oldest < count + j and starts[oldest] < need:
            oldest += 1
        waits.append(oldest % count if oldest > j else j + 1)
    # `oldest` is the unit after the last one that must be gone. Unit 0 entered means: unit n − 1 left before.
    return [wait if wait else count for wait in waits]


def lay(sizes: Sequence[int], ring: int, first: int = 0, forward: int | None = None, spread: bool = False) -> list[int]:
    """
    Offsets: laps over the ring, forwards from unit `first` for `forward` units, backwards from `first` for the rest.

    What a lap leaves unused costs lookahead where it lies: at the end of forward laps, at the start of backward
    ones, so that laps next to `first` meet without loss; or between the units of every lap (`spread`), which is what
    two or three large units to a lap need.
    """
    count = len(sizes)
    turn = [*range(first, count), *range(first)]
    onwards, back = (turn, []) if forward is None else (turn[:forward], turn[forward:])
    offsets = [0] * count
    if spread:
        for lap in (*_laps(onwards, sizes, ring), *_laps(back, sizes, ring)):
            position = 0
            gaps = max(1, len(lap) - 1)
            gap = (ring - sum(sizes[unit] for unit in lap)) // gaps // ALIGN * ALIGN
            for unit in lap:
                offsets[unit] = position
                position += sizes[unit] + gap
        return offsets
    position = 0
    for unit in onwards:
        size = sizes[unit]
        if position + size > ring:
            position = 0
        offsets[unit] = position
        position += size
    position = ring
    for unit in reversed(back):
        position -= sizes[unit]
        if position < 0:
            position = ring - sizes[unit]
        offsets[unit] = position
    return offsets


def _laps(units: Sequence[int], sizes: Sequence[int], ring: int) -> list[list[int]]:
    laps: list[list[int]] = []
    used = 0
    for unit in units:
        if not laps or used + sizes[unit] > ring:
            laps.append([])
            used = 0
        laps[-1].append(unit)
        used += sizes[unit]
    return laps


def first_fit(sizes: Sequence[int], ring: int, apart: Sequence[Collection[int]], first: int) -> list[int] | None:
    """
    Offsets: every unit, in order from `first`, at the lowest place that overlaps no unit of `apart[unit]`.

    None if the ring is too small for that. (First fit, as for dynamic storage allocation.)
    """
    count = len(sizes)
    offsets = [-1] * count
    for step in range(count):
        unit = (first + step) % count
        position, size = 0, sizes[unit]
        for start, stop in sorted((offsets[j], offsets[j] + sizes[j]) for j in apart[unit] if offsets[j] >= 0):
            if start - position >= size:
                break
            position = max(position, stop)
        if position + size > ring:
            return None
        offsets[unit] = position
    return offsets


def _apart(track: Track, ideal: Schedule, late: Latest) -> list[list[int]]:
    """For every unit, those that it must not share bytes with, lest one waits for the other longer than harmless."""
    count = len(track.copy_ms)
    period_ms = ideal.step_ms + track.gap_ms
    result: list[list[int]] = [[] for _ in range(count)]
    for unit in range(count):
        before = unit - 1
        while before > unit - count:
            free = ideal.enter[before + 1] if before >= 0 else ideal.enter[before + 1 + count] - period_ms
            if free <= late.begin[unit] + _NEAR_MS:
                break
            result[unit].append(before % count)
            result[before % count].append(unit)
            before -= 1
    return result


def place(track: Track, sizes: Sequence[int], ring: int, ideal: Schedule, tries: int) -> tuple[float, list[int]]:
    """
    The best of up to `tries` layouts: (step time in ms, offsets).

    A layout is judged by how much later than harmless it lets a copy begin in the ideal ring's schedule (`latest`).
    First fit either keeps that at nothing or fails. Then laps: the most endangered copies are looked at first, so
    most layouts are dropped after a look at one or two. Only the winners are played.
    """
    count = len(sizes)
    late = latest(track, ideal)
    apart = _apart(track, ideal, late)
    for first in range(0, count, -(-count // _FIRSTS)):
        offsets = first_fit(sizes, ring, apart, first)
        if offsets is not None:
            return _played(track, sizes, offsets), offsets
    period_ms = ideal.step_ms + track.gap_ms
    entered = [enter - period_ms for enter in ideal.enter]  # in the forward before
    margins = []
    for j, wait in enumerate(track.wait):
        free = ideal.enter[wait] if wait <= j else entered[wait]
        margins.append((late.begin[j] - free, j))
    margins.sort()
    order = [j for _, j in margins]
    critical = [track.wait[j] % count for margin, j in margins if margin < _NEAR_MS][:4]
    winners: list[tuple[float, list[int]]] = []
    few = sum(sizes) * 6 > ring * count  # units to a lap, so that what is left over is much
    for number, (first, forward) in enumerate(_starts(count, critical, tries)):
        offsets = lay(sizes, ring, first, forward, spread=few and number % 2 == 1)
        worst = 0.0
        bar = winners[-1][0] if len(winners) == _WINNERS else _FAR
        for j in order:
            start = offsets[j]
            stop = start + sizes[j]
            back = j - 1
            least = j - count
            while back > least and not (offsets[back] < stop and start < offsets[back] + sizes[back]):
                back -= 1
            free = ideal.enter[back + 1] if back >= 0 else entered[back + 1 + count]
            excess = free - late.begin[j]
            if excess > worst:
                worst = excess
                if worst >= bar:
                    break
        else:
            winners.append((worst, offsets))
            winners.sort(key=lambda winner: winner[0])
            del winners[_WINNERS:]
            if worst <= _NEAR_MS:
                break
    return min((_played(track, sizes, offsets), offsets) for _, offsets in winners)


def _played(track: Track, sizes: Sequence[int], offsets: Sequence[int]) -> float:
    slots = [(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True)]
    return run(replace(track, wait=slot_waits(slots))).step_ms


def _starts(count: int, critical: Sequence[int], tries: int) -> list[tuple[int, int]]:
    """(first, forward) to try: plain laps; then spread evenly over all, and over what begins at a critical unit."""
    starts = [(0, count), (0, count)]
    for number in range(2, tries):
        even = number // 2 % 2 == 0
        first = critical[number // 4 % len(critical)] if critical and even else int(number * _GOLDEN % 1 * count)
        starts.append((first, int(number * _SILVER % 1 * (count + 1))))
    return starts
