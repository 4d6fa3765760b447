"""Ways to run a model in a given number of bytes: what is streamed, in which units, at which offsets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Sequence

from lib_async_mover.few import FEW, choices, place_few
from lib_async_mover.limit import bus_limit_ms, limit_ms
from lib_async_mover.merging import harms, latest, merge
from lib_async_mover.outline import Outline, Ranges
from lib_async_mover.placement import place
from lib_async_mover.refine import Played, refine
from lib_async_mover.residents import fit
from lib_async_mover.simulate import run, slot_waits

# Found by trial on the recorded profiles (tests/profiles), on buses that need 0.25 to 3.3 times as long as compute.
GRAINS = (128, 300)  # pieces a model is cut into, roughly, before some become residents and the rest is merged
COARSE = (20, 40, 96)  # the same where the bus has time, so that units should be few
SHARES = (4, 2)  # a merged unit is at most this part of the ring
_RINGS = (1.0, 0.5, 0.3)  # of the room
_NEARLY = 0.9  # × the bus's limit: launches may bind once units are launched too
_FEW_UNITS = 16  # what launching so many takes may come on top, where launches bind
_SLOWEST = 1.08  # × limit: how slow a step may be to be looked at
_WORTH = 0.997  # what larger units must save to be worth their harder placement
_CLOSE = 1.002  # × limit: no need to look closer
_PLAYS = 48  # simulations to refine the best candidate with
_PLACED = 4  # candidates that get offsets
_LAYOUTS = 144  # tried for each, fewer if units are many
_BETTER = 1.0003  # × what a further placement must be able to gain to be tried
SAME = 1 + 1e-9


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


def candidate_in(outline: Outline, room: int) -> Candidate:
    """
    The fastest candidate found that takes at most `room` bytes, a multiple of the alignment.

    Leaves larger than `room` are loose; their offset is 0.

    1. Choose residents for a few ring sizes (`residents`), 2. merge what is streamed into larger units (`merging`),
    3. refine the best (`refine`), all on an ideal ring, 4. give the best few offsets (`placement`).
    """
    if room >= outline.everything:
        return Candidate(outline.workload.resident_ms, (), (), outline.everything, 0)
    if room < outline.largest:
        return _with_loose(outline, room)
    if outline.count <= FEW:
        return _first_placed(outline, _of_few(outline, room), room)
    load = outline.workload
    if load.launch_ms < bus_limit_ms(load, room + load.fixed_bytes):
        return _first_placed(outline, _of_many(outline, room), room)
    # Where a forward waits for its launches many plans take equally long, and some of them keep the bus busy all the
    # time. The CPU's time is the least certain of all that is measured: a plan should also serve one that is faster.
    other = outline.brisk
    return in_more_room(outline, _first_placed(other, _of_many(other, room), room), room)


def _first_placed(outline: Outline, ideals: Sequence[tuple[float, Ranges]], room: int) -> Candidate:
    """The best of some choices, as (step time over an ideal ring in ms, ranges), ascending, once they have offsets."""
    best: Candidate | None = None
    for ideal_ms, ranges in ideals:
        if best is None or ideal_ms * _BETTER < best.step_ms:  # no placement is faster than the ideal ring
            placed = _placed(outline, ranges, room)
            if best is None or placed.step_ms < best.step_ms:
                best = placed
    assert best is not None  # streaming every leaf is always among them
    return best


def largest_unit(outline: Outline, ring: int) -> int:
    """What a unit may take in a ring, both in bytes: a share of it, or one leaf, or one piece, if that fits."""
    return max(ring // min(SHARES), outline.largest, outline.everything // min(COARSE))


def _of_few(outline: Outline, room: int) -> list[tuple[float, Ranges]]:
    played = ((outline.play(ranges, room), ranges) for ranges in choices(outline.count, outline.workload.barriers))
    return sorted((result[1].step_ms, ranges) for result, ranges in played if result is not None)


def _of_many(outline: Outline, room: int) -> list[tuple[float, Ranges]]:
    merged = sorted(_choices(outline, room))[:_PLACED]
    load = outline.workload
    ranges = merged[0][1]
    plays = max(_PLAYS // 4, min(_PLAYS, 2000 // len(ranges)))
    play = partial(_play_capped, outline, room)
    overhead_ms = load.unit_overhead_ms + (load.unit_launch_ms if load.launch_ms else 0.0)
    refined = refine(ranges, play, outline.bytes_at, load.barriers, overhead_ms, plays)
    return sorted([refined, *merged])


def _play_capped(outline: Outline, room: int, ranges: Ranges) -> Played | None:
    ring = room - outline.resident_bytes(ranges)
    return None if max(outline.sizes(ranges)) > largest_unit(outline, ring) else outline.play(ranges, room)


def _choices(outline: Outline, room: int) -> list[tuple[float, Ranges]]:
    """Choices of what is streamed, in merged units: (step time over an ideal ring in ms, ranges)."""
    load = outline.workload
    rate, overhead_ms, compute_ms = load.bytes_per_ms, load.unit_overhead_ms, outline.compute_ms
    budget = room + load.fixed_bytes
    least_ms = limit_ms(load, budget)
    launched = load.launch_ms > _NEARLY * bus_limit_ms(load, budget)
    best_ms = least_ms * _SLOWEST + (_FEW_UNITS * load.unit_launch_ms if launched else 0.0)
    excess = outline.everything - room
    rings = {int(room * share) for share in _RINGS} | {2 * outline.largest, 7 * outline.largest // 2}
    nearly = excess < outline.everything // 4
    if nearly or (excess + 2 * outline.largest) / rate > least_ms:  # every byte of ring costs time: try small ones
        rings |= {outline.largest, outline.largest * 3 // 4, outline.largest // 2}
    # Few units are what counts where the bus is no problem, and few bytes where little more would fit.
    idle = limit_ms(load, budget - room // 4) <= load.resident_ms * SAME
    sparings = (False, True) if idle or nearly else (False,)
    results: list[tuple[float, Ranges]] = []
    seen: set[Ranges] = set()
    for parts in COARSE if idle or launched else GRAINS:
        if best_ms <= least_ms * _CLOSE:
            break
        grain = min(outline.everything // parts, room // 2)
        pieces = outline.pieces(grain)
        # Waiting that the limit itself asks for, less what overhead may hide of it.
        low_ms = max(0.0, bus_limit_ms(load, budget) - compute_ms - overhead_ms * len(pieces.ranges))
        for ring, sparing in product(sorted(rings, reverse=True), sparings):
            if ring == room:
                flags: Sequence[bool] | None = [True] * len(pieces.ranges)
            elif ring > room or grain * 3 > ring or (excess + ring) / rate > best_ms:
                continue
            else:
                most_ms = best_ms - compute_ms
                flags = fit(pieces, room, ring, min(low_ms, most_ms), most_ms, load, sparing)
            if not flags or not any(flags):
                continue
            ranges = tuple(piece for piece, flag in zip(pieces.ranges, flags, strict=True) if flag)
            if ranges in seen:
                continue
            seen.add(ranges)
            played = outline.play(ranges, room)
            # All that merging can save is what units cost.
            saved_ms = (overhead_ms + load.unit_launch_ms) * len(ranges)
            if played is None or (results and played[1].step_ms - saved_ms > best_ms):
                continue
            results.extend(_merged(outline, ranges, played, room))
            best_ms = min(best_ms, results[-1][0])
    return results


def _merged(outline: Outline, ranges: Ranges, played: Played, room: int) -> list[tuple[float, Ranges]]:
    """Harmless merges until there are none, for a few largest sizes of a unit."""
    barriers = outline.workload.barriers
    results: list[tuple[float, Ranges]] = []
    for share in SHARES:
        every = 1
        while every <= 2:
            track, schedule = played
            largest = (room - outline.resident_bytes(ranges)) // share
            harm_ms = harms(ranges, barriers, track, schedule, latest(track, schedule))
            merged = tuple(merge(ranges, outline.sizes(ranges), largest, harm_ms, every))
            if len(merged) < len(ranges):
                other = outline.play(merged, room)
                if other is not None and other[1].step_ms <= schedule.step_ms:
                    ranges, played = merged, other
                    continue
            every += 1
        if not results or played[1].step_ms < results[-1][0] * _WORTH:
            results.append((played[1].step_ms, ranges))
    return results


def _placed(outline: Outline, ranges: Ranges, room: int) -> Candidate:
    resident = outline.resident_bytes(ranges)
    ring = room - resident
    sizes = outline.sizes(ranges)
    track = outline.track(ranges, sizes, ring)
    ideal = run(track)
    step_ms, offsets = place(track, sizes, ring, ideal, min(_LAYOUTS, 8000 // len(ranges)))
    if outline.count <= FEW and step_ms > ideal.step_ms * SAME:
        step_ms, offsets = min((step_ms, offsets), place_few(track, sizes, ring, ideal))
    used = max(offset + size for offset, size in zip(offsets, sizes, strict=True))
    return Candidate(step_ms, ranges, tuple(offsets), resident, used)


def in_more_room(outline: Outline, candidate: Candidate, room: int) -> Candidate:
    """
    A candidate in `room` bytes, timed anew: loose leaves that now fit have a slot from the ring's start.

    Such a slot overlaps all that were there, so no step is slower than with the leaf loose.
    """
    sizes = outline.sizes(candidate.streamed)
    slots = [
        (offset, offset + size) if size <= room else None
        for offset, size in zip(candidate.offsets, sizes, strict=True)
    ]
    track = replace(outline.track(candidate.streamed, sizes, room), wait=slot_waits(slots))
    used = max((slot[1] for slot in slots if slot), default=0)
    return replace(candidate, step_ms=run(track).step_ms, ring_bytes=used)


def _with_loose(outline: Outline, room: int) -> Candidate:
    """A plain ring of what fits `room`."""
    candidates = []
    for parts in (3, 8):
        ranges = tuple(outline.pieces(room // parts).ranges)
        offsets, position = [], 0
        for size in outline.sizes(ranges):
            position = position if position + size <= room else 0
            offsets.append(position if size <= room else 0)
            position += size
        candidates.append(in_more_room(outline, Candidate(0.0, ranges, tuple(offsets), 0, 0), room))
    return min(candidates, key=lambda candidate: candidate.step_ms)
