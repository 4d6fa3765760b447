"""The curve and the residency picture: made once per plan, in the background, and only while nothing is sampled.

Planning for twenty sizes takes a second or two of Python, which must not compete with a generation.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from lib_async_mover import Mover
from lib_async_mover.plan.budget import curve
from lib_async_mover.plan.plan import Plan
from lib_async_mover.plan.workload import Workload

PAUSE_S = 0.5

logger = logging.getLogger("async_lowvram")


class Details:
    """`get()` is what the page draws. Asking for the revision starts the work, if there is any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made_of: tuple[Any, Any] | None = None  # (leaves, plan): kept, so that their identities stay theirs
        self._made: dict[str, Any] = {"revision": 0, "curve": [], "blocks": []}
        self._worker: threading.Thread | None = None
        self._sampling = False
        self._looked: Any = None

    def get(self) -> dict[str, Any]:
        """
        {"revision": n, "curve": [[budget MB, ms, it/s], …], "blocks": [[name, ms, [[kind, bytes], …]], …]}

        A step of the curve is from forward to forward, like the measured ones.

        Blocks in execution order; kind is 0 for resident, 1 for streamed.
        """
        return self._made

    def revision_of(self, mover: Mover, sampling: bool) -> int:
        """Which version `get()` has of this mover: 0 is none yet. Never blocks."""
        self._sampling = sampling
        look = (id(mover), mover.forwards, mover.vram_mb)
        if not sampling and look != self._looked:
            plan, workload = mover.plan, mover.workload()
            if plan is not None and workload is not None and self._start(workload, plan):
                self._looked = look
        return self._made["revision"]

    def curve_of(self, mover: Mover) -> list[list[float]]:
        """The curve, if it was made for what `mover` last measured; else none."""
        made, workload = self._made_of, mover.workload()
        current = made is not None and workload is not None and made[0] is workload.leaves
        return self._made["curve"] if current else []

    def _start(self, workload: Workload, plan: Plan) -> bool:
        """Whether these are made, or will be; else ask again."""
        with self._lock:
            made = self._made_of
            if made is not None and made[0] is workload.leaves and made[1] is plan:
                return True
            if self._worker is not None and self._worker.is_alive():
                return False
            self._worker = threading.Thread(
                target=self._make, args=(workload, plan), name="async-lowvram-curve", daemon=True
            )
            self._worker.start()
            return True

    def _make(self, workload: Workload, plan: Plan) -> None:
        same = self._made_of is not None and self._made_of[0] is workload.leaves
        try:
            points = self._made["curve"] if same else self._points(workload)
        except Exception:
            logger.exception("the curve could not be drawn; generation is not affected")
            points = []
        self._made = {"revision": self._made["revision"] + 1, "curve": points, "blocks": blocks(plan, workload)}
        self._made_of = (workload.leaves, plan)

    def _points(self, workload: Workload) -> list[list[float]]:
        points: list[list[float]] = []
        for point in curve(workload):
            while self._sampling:
                time.sleep(PAUSE_S)
            step_ms = max(1e-3, point.step_ms + workload.gap_ms)
            points.append([point.budget_mb, round(step_ms, 3), round(1e3 / step_ms, 3)])
        return points


def blocks(plan: Plan, workload: Workload) -> list[list[Any]]:
    """Per block of the UNet, its spans of resident and streamed bytes; see `Details.get`."""
    rows: list[list[Any]] = []
    for leaf, resident in zip(workload.leaves, plan.residents(), strict=True):
        kind = 0 if resident else 1  # as the page's script counts them
        if not rows or rows[-1][0] != leaf.block:
            rows.append([leaf.block, 0.0, []])
        row = rows[-1]
        row[1] = round(row[1] + leaf.ms, 4)
        if row[2] and row[2][-1][0] == kind:
            row[2][-1][1] += leaf.bytes
        else:
            row[2].append([kind, leaf.bytes])
    return rows


DETAILS = Details()
