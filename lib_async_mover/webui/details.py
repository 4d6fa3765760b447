"""The curve and the residency picture: made once per plan, in the background, and only while nothing is sampled.

Planning for twenty budgets takes a second or two of Python, which must not compete with a generation.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from lib_async_mover.curve import curve
from lib_async_mover.picture import LOOSE, RESIDENT, STREAMED, block_of, kinds_of
from lib_async_mover.webui.logs import logger
from lib_async_mover.workload import MIB, Workload

if TYPE_CHECKING:
    from lib_async_mover import Mover
    from lib_async_mover.plan import Plan

POINTS = 18
LEAST_MB = 32
PAUSE_S = 0.5
KINDS = {RESIDENT: 0, STREAMED: 1, LOOSE: 2}  # as the page's script counts them


class Details:
    """`get()` is what the page draws. Asking for the revision starts the work, if there is any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made_of: tuple[Any, Any] | None = None  # (leaves, plan): kept, so that their identities stay theirs
        self._made: dict[str, Any] = {"revision": 0, "curve": [], "blocks": []}
        self._curve_of: Any = None
        self._worker: threading.Thread | None = None
        self._sampling = False
        self._looked: Any = None

    def get(self) -> dict[str, Any]:
        """
        {"revision": n, "curve": [[budget MB, ms, it/s], …], "blocks": [[name, ms, [[kind, bytes], …]], …]}

        Blocks in execution order; kind is 0 for resident, 1 for streamed, 2 for loaded on the spot.
        """
        return self._made

    def revision_of(self, mover: Mover, sampling: bool) -> int:
        """Which version `get()` has of this mover: 0 is none yet. Never blocks."""
        self._sampling = sampling
        look = (id(mover), mover.forwards, mover.vram_mb)
        if sampling or look == self._looked:
            return self._made["revision"]
        loadout, workload = mover.holdings.loadout, mover.workload()
        if loadout is not None and workload is not None:
            if self._is_of(workload, loadout.plan) or self._start(workload, loadout.plan):
                self._looked = look
        return self._made["revision"]

    def _start(self, workload: Workload, plan: Plan) -> bool:
        with self._lock:
            if self._worker is not None and self._worker.is_alive():
                return False
            self._worker = threading.Thread(
                target=self._make, args=(workload, plan), name="async-lowvram-curve", daemon=True
            )
            self._worker.start()
            return True

    def _is_of(self, workload: Workload, plan: Plan) -> bool:
        made = self._made_of
        return made is not None and made[0] is workload.leaves and made[1] is plan

    def _make(self, workload: Workload, plan: Plan) -> None:
        try:
            points = self._made["curve"] if self._curve_of is workload.leaves else self._points(workload)
        except Exception:
            logger.exception("the curve could not be drawn; generation is not affected")
            points = []
        self._curve_of = workload.leaves
        self._made = {"revision": self._made["revision"] + 1, "curve": points, "blocks": blocks(plan, workload)}
        self._made_of = (workload.leaves, plan)

    def _points(self, workload: Workload) -> list[list[float]]:
        points: list[list[float]] = []
        for budget in budgets(workload):
            while self._sampling:
                time.sleep(PAUSE_S)
            (point,) = curve(workload, [budget])
            points.append([round(point.budget_mb, 1), round(point.step_ms, 3), round(point.its_per_s, 3)])
        return points


def budgets(workload: Workload) -> list[int]:
    """Sizes in bytes to draw the curve at, each some per cent above the one before, up to all of the weights."""
    everything = workload.weight_bytes + workload.fixed_bytes
    largest = max(leaf.bytes for leaf in workload.leaves)
    least = min(everything, max(min(LEAST_MB * MIB, everything // 8), largest + workload.fixed_bytes))
    ratio = (everything / least) ** (1 / (POINTS - 1)) if least else 1.0
    return sorted({round(least * ratio**number) for number in range(POINTS)})


def blocks(plan: Plan, workload: Workload) -> list[list[Any]]:
    """Per block of the UNet, its spans of resident, streamed and loose bytes; see `Details.get`."""
    rows: list[list[Any]] = []
    for leaf, drawn in zip(workload.leaves, kinds_of(plan), strict=True):
        kind = KINDS[drawn]
        name = block_of(leaf.name)
        if not rows or rows[-1][0] != name:
            rows.append([name, 0.0, []])
        row = rows[-1]
        row[1] = round(row[1] + leaf.ms, 4)
        if row[2] and row[2][-1][0] == kind:
            row[2][-1][1] += leaf.bytes
        else:
            row[2].append([kind, leaf.bytes])
    return rows


DETAILS = Details()
