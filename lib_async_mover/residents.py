"""Which pieces of the model stay on the device, so that the bus never has more to do than time to do it in."""

from __future__ import annotations

from lib_async_mover.outline import Pieces


def choose(
    pieces: Pieces, ring: int, enough: int, stall_ms: float, overhead_ms: float, gap_ms: float
) -> list[bool]:
    """
    True for pieces that are streamed; as many as a ring of `ring` bytes allows at `stall_ms` of waiting a forward.

    Walks two forwards (the second from where the first left the bus) with an ideal ring, and streams a piece
    unless compute would have to wait for it longer than what is left of `stall_ms`. A late choice is the best
    choice: a resident relieves every run of leaves that it lies in, and the later it comes the more runs those
    are (interval stabbing). It also keeps the ring as empty as can be before sections with much compute and few
    bytes, where the bus then has something to do.
    """
    count = len(pieces.sizes)
    rows = list(zip(range(count), pieces.sizes, pieces.copy_ms, pieces.compute_ms, strict=True))
    streamed = [False] * count
    starts: list[int] = []  # byte position of every streamed piece, and when it was entered
    enters: list[float] = []
    oldest = position = 0
    now = copied = 0.0
    for _ in range(2):
        left_ms = stall_ms + 1e-9
        moved = 0
        for index, size, copy_ms, compute_ms in rows:
            need = position + size - ring
            after, known = oldest, len(starts)
            while after < known and starts[after] < need:
                after += 1
            free = (enters[after] if after < known else now) if after else 0.0
            arrives = (free if free > copied else copied) + copy_ms
            wait_ms = arrives - now
            if wait_ms > left_ms or size > ring or moved >= enough:
                streamed[index] = False
                now += compute_ms
                continue
            streamed[index] = True
            moved += size
            starts.append(position)
            enters.append(now)
            position += size
            oldest, copied = after, arrives
            if wait_ms > 0:
                left_ms -= wait_ms
                now = arrives
            now += compute_ms + overhead_ms
        now += gap_ms
    return streamed


def fit(
    pieces: Pieces,
    room: int,
    ring: int,
    least_ms: float,
    most_ms: float,
    overhead_ms: float,
    gap_ms: float,
    sparing: bool = False,
    rounds: int = 3,
) -> list[bool] | None:
    """
    `choose` with the least waiting whose residents and ring fit `room` bytes, by bisection in `least_ms` … `most_ms`.

    None if even `most_ms` of waiting leaves more residents than fit.
    """
    total = sum(pieces.sizes)
    enough = total - room + ring if sparing else total
    low, high = least_ms, most_ms
    found = None
    for number in range(rounds + 1):
        stall_ms = high if number == 0 else (low + high) / 2
        streamed = choose(pieces, ring, enough, stall_ms, overhead_ms, gap_ms)
        moved = sum(size for size, flag in zip(pieces.sizes, streamed, strict=True) if flag)
        if total - moved + ring <= room:
            high, found = stall_ms, streamed
        elif number == 0:
            return None
        else:
            low = stall_ms
    return found
