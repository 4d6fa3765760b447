"""Which pieces of the model stay on the device, so that the bus never has more to do than time to do it in."""

from __future__ import annotations

from lib_async_mover.outline import Pieces
from lib_async_mover.workload import Workload


def choose(
    pieces: Pieces, ring: int, enough: int, stall_ms: float, load: Workload
) -> list[bool]:
    """
    True for pieces that are streamed; as many as a ring of `ring` bytes allows at `stall_ms` of waiting a forward.

    Walks two forwards (the second from where the first left the bus) with an ideal ring, and streams a piece
    unless compute would have to wait for it longer than what is left of `stall_ms`. A late choice is the best
    choice: a resident relieves every run of leaves that it lies in, and the later it comes the more runs those
    are (interval stabbing). It also keeps the ring as empty as can be before sections with much compute and few
    bytes, where the bus then has something to do.
    """
    overhead_ms = load.unit_overhead_ms
    columns = (pieces.sizes, pieces.copy_ms, pieces.compute_ms, pieces.issue_ms, pieces.late_ms)
    rows = list(zip(range(len(pieces.sizes)), *columns, strict=True))
    streamed = [False] * len(rows)
    starts = [0]  # byte position of every streamed piece; the last is of the next one
    enters: list[float] = []
    count = oldest = position = 0
    now = copied = launched = 0.0
    for _ in range(2):
        left_ms = stall_ms + 1e-9
        moved = 0
        for index, size, copy_ms, compute_ms, issue_ms, late_ms in rows:
            computed = launched + late_ms
            launched += issue_ms
            if size <= ring and moved < enough:
                need = position + size - ring
                after = oldest
                while starts[after] < need:
                    after += 1
                free = enters[after] if after < count else now
                arrives = (free if free > copied else copied) + copy_ms
                if arrives - now <= left_ms:
                    streamed[index] = True
                    enters.append(now)
                    count += 1
                    moved += size
                    position += size
                    starts.append(position)
                    oldest = after
                    copied = arrives
                    if arrives > now:
                        left_ms -= arrives - now
                        now = arrives
                    now += compute_ms + overhead_ms
                    if computed > now:
                        now = computed
                    continue
            streamed[index] = False
            now += compute_ms
            if computed > now:
                now = computed
        now += load.gap_ms
        launched += load.gap_ms
    return streamed


def fit(
    pieces: Pieces,
    room: int,
    ring: int,
    least_ms: float,
    most_ms: float,
    load: Workload,
    sparing: bool = False,
    rounds: int = 3,
) -> list[bool] | None:
    """
    `choose` with the least waiting, from `least_ms` to `most_ms`, whose residents and ring fit `room` bytes.

    Where the bus binds, waiting one ms longer streams one ms more of it: Newton's method, kept in a bracket.
    None if even `most_ms` of waiting leaves more residents than fit. `sparing`: no more is streamed than must be.
    """
    total = sum(pieces.sizes)
    needed = total - room + ring
    enough = needed if sparing else total
    bus = total / max(sum(pieces.copy_ms), 1e-12)
    found = None
    low, high, stall_ms = least_ms, most_ms, least_ms
    for number in range(rounds + 1):
        if number == rounds and found is None:
            stall_ms = most_ms
        streamed = choose(pieces, ring, enough, stall_ms, load)
        short = needed - sum(size for size, flag in zip(pieces.sizes, streamed, strict=True) if flag)
        if short <= 0:
            high, found = stall_ms, streamed
        else:
            low = stall_ms
        if high - low < 1e-3 * most_ms or (found and number >= rounds - 1):
            break
        stall_ms += 1.01 * short / bus
        if not low < stall_ms < high:
            stall_ms = (low + high) / 2
    return found
