"""The last percent of a candidate: merges that cost less than they save, and splits of units that hold others up."""

from __future__ import annotations

from bisect import bisect_left
from typing import Callable, Collection, Sequence

from lib_async_mover.merging import given_back, harms, latest
from lib_async_mover.outline import Ranges
from lib_async_mover.simulate import Schedule, Track

_NEAR_MS = 1e-6
_BETTER = 1 - 1e-9

Played = tuple[Track, Schedule]


def refine(
    ranges: Ranges,
    play: Callable[[Ranges], Played | None],
    bytes_at: Sequence[int],
    borders: Collection[int],
    overhead_ms: float,
    plays: int,
) -> tuple[float, Ranges]:
    """
    Hill climbing from `ranges` with at most `plays` simulations: (step time in ms, ranges).

    `play` gives a track and its schedule, or None if the ranges do not fit; `bytes_at[i]` is the sum of bytes of
    the leaves before i. The most promising moves come first, by what the schedule says that they would save.
    """
    current = play(ranges)
    assert current is not None
    tried: set[Ranges] = set()
    while plays > 0:
        track, schedule = current
        better = None
        for move in _moves(ranges, track, schedule, bytes_at, borders, overhead_ms):
            if move in tried:
                continue
            tried.add(move)
            plays -= 1
            played = play(move)
            if played is not None and played[1].step_ms < schedule.step_ms * _BETTER:
                better = played
                ranges = move
                break
            if plays <= 0:
                break
        if better is None:
            break
        current = better
    return current[1].step_ms, ranges


def _moves(
    ranges: Ranges,
    track: Track,
    schedule: Schedule,
    bytes_at: Sequence[int],
    borders: Collection[int],
    overhead_ms: float,
) -> list[Ranges]:
    late = latest(track, schedule)
    given = given_back(track, schedule, late)
    moves: list[tuple[float, Ranges]] = []
    for j, harm_ms in enumerate(harms(ranges, borders, track, schedule, late)):
        if harm_ms < overhead_ms:
            merged = (*ranges[:j], (ranges[j][0], ranges[j + 1][1]), *ranges[j + 2:])
            moves.append((overhead_ms - harm_ms, merged))
    for j, (first, stop) in enumerate(ranges):
        # Somebody waits for this unit's copy, or for its slot: half of it would be there, or gone, earlier.
        slack_ms = min(late.begin[j] - schedule.begin[j], given[j + 1] - schedule.enter[j + 1])
        if slack_ms < _NEAR_MS and stop - first > 1:
            middle = (bytes_at[first] + bytes_at[stop]) / 2
            cut = min(max(first + 1, bisect_left(bytes_at, middle, first, stop)), stop - 1)
            if cut - 1 > first and middle - bytes_at[cut - 1] < bytes_at[cut] - middle:
                cut -= 1
            parts = (*ranges[:j], (first, cut), (cut, stop), *ranges[j + 1:])
            moves.append((track.copy_ms[j] / 8, parts))
    moves.sort(reverse=True)
    return [move for _, move in moves]
