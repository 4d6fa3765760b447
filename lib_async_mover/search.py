"""The search for the fastest plan, over a grid of budgets, so that more budget is never slower."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import lru_cache
from itertools import accumulate

from lib_async_mover.candidates import COARSE, SAME, SHARES, Candidate, candidate_in, in_more_room
from lib_async_mover.few import FEW
from lib_async_mover.limit import limit_ms
from lib_async_mover.outline import Outline
from lib_async_mover.placement import ALIGN
from lib_async_mover.workload import Workload

_LEAST = 16  # budgets below 1/16 of the largest leaf count as none


class Search:
    """The best candidates of one workload, by budget in bytes. Deterministic; every grid point is searched once."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.outline = Outline(workload)
        self.grid = self._budgets()
        # The first grid point at which every leaf fits.
        whole = min(self.outline.largest, self.outline.everything)
        self._first_whole = bisect_left(self.grid, workload.fixed_bytes + whole)
        self._descending = sorted((leaf.bytes for leaf in workload.leaves), reverse=True)
        self._held = list(accumulate(self._descending))
        self._found: dict[int, Candidate] = {}

    def best(self, budget_bytes: int) -> Candidate:
        """The best candidate at any grid point up to `budget_bytes`: more budget is never slower."""
        index = bisect_right(self.grid, budget_bytes) - 1
        best = self.at(self.grid[index])
        if index < self._first_whole:
            return in_more_room(self.outline, best, self._room(budget_bytes))
        for budget in reversed(self.grid[self._first_whole : index]):
            if self.least_ms(budget) >= best.step_ms * (1 - 1e-12):
                break  # nor can any smaller budget do better
            other = self.at(budget)
            if other.step_ms < best.step_ms:
                best = other
        return best

    def at(self, budget_bytes: int) -> Candidate:
        """
        The best candidate found at this very grid point; a smaller one may do better.

        Budgets that leave some leaf loose hand their candidate on to the next one, up to the first without.
        """
        room = self._room(budget_bytes)
        if room not in self._found:
            found = candidate_in(self.outline, room)
            index = bisect_right(self.grid, budget_bytes) - 1
            if 0 < index <= self._first_whole:
                handed_on = in_more_room(self.outline, self.at(self.grid[index - 1]), room)
                found = min(found, handed_on, key=lambda candidate: candidate.step_ms)
            self._found[room] = found
        return self._found[room]

    def _room(self, budget_bytes: int) -> int:
        return max(0, budget_bytes - self.workload.fixed_bytes) // ALIGN * ALIGN

    def least_ms(self, budget_bytes: int) -> float:
        """
        No candidate at this budget is faster: a bound that is tighter than `limit_ms`, for what `at` can find.

        - A unit takes at most a share of the ring, or is one leaf, or one piece: so many units, so much overhead.
        - The ring holds at least the largest leaf that is not resident. The rest of the room bounds the residents,
          and what is not resident crosses the bus every step.
        """
        load, outline = self.workload, self.outline
        room = budget_bytes - load.fixed_bytes
        least_ms = limit_ms(load, budget_bytes)
        if not outline.largest <= room < outline.everything:
            return least_ms
        ring = self._descending[bisect_right(self._held, room) - 1]
        moved_ms = (outline.bytes_at[-1] - room + ring) / load.bytes_per_ms - load.gap_ms
        units = 1
        if outline.count > FEW:
            piece = max(outline.largest, outline.everything // min(COARSE))
            units = min(outline.everything * min(SHARES) // room, (outline.everything - room) // piece)
        computed_ms = outline.compute_ms + units * load.unit_overhead_ms
        return max(least_ms, moved_ms, computed_ms, load.launch_ms + units * load.unit_launch_ms)

    def _budgets(self) -> list[int]:
        """
        The grid, ascending: 0; round numbers of bytes, no further apart than matters; what holds everything.

        Where the bus binds, steps of 1/8 to 1/5, and at most 1/128 of all weights (0.8 % of their time on the bus).
        Coarser where more budget gains little, or where the largest leaf does not fit.
        """
        load, outline = self.workload, self.outline
        fixed, everything = load.fixed_bytes, outline.everything
        grid = [0]
        room = outline.largest // _LEAST
        while room < everything:
            if room < outline.largest:
                step = _power(room // 2)
            elif outline.count <= FEW:
                step = _power(min(room // 64, everything // 128))
            elif limit_ms(load, fixed + room * 3 // 4) <= load.resident_ms * SAME:
                step = _power(room // 4)
            elif limit_ms(load, fixed + room) <= load.resident_ms * SAME:
                step = _power(min(room // 8, everything // 48))
            else:
                step = _power(min(room // 5, everything // 128))
            grid.append(fixed + room)
            if room < outline.largest:
                room = min(room + step, outline.largest)
            else:
                room = ((fixed + room) // step + 1) * step - fixed
        grid.append(fixed + everything)
        return grid


def _power(size: int) -> int:
    """The largest power of two up to `size`, and at least the alignment."""
    return max(ALIGN, 1 << max(0, size.bit_length() - 1))


@lru_cache(maxsize=8)
def search_of(workload: Workload) -> Search:
    """The one search of a workload; equal workloads share it."""
    return Search(workload)
