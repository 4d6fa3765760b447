"""What the page asks for once a second: memory, and how the streaming goes. Plain values, ready for JSON."""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict
from typing import Any

from modules import shared

from lib_async_mover import Mover
from lib_async_mover.webui.host.choice import INTERVAL_OPTION, REMEMBER_OPTION, STANDING, option
from lib_async_mover.webui.host.conversion import CONVERSIONS
from lib_async_mover.webui.host.state import STATE
from lib_async_mover.webui.page.advice import advice
from lib_async_mover.webui.page.details import DETAILS
from lib_async_mover.webui.page.memory import memory

# Of `mover.stats()`, what the page shows
STATS = (
    "vram_mb", "budget_mb", "resident_mib", "ring_mib", "weights_mib", "pinned_mib", "pageable_mib", "streamed_units",
    "bytes_per_step", "step_ms", "it_s", "predicted_ms", "limit_ms", "stall_share", "h2d_gbps", "guests",
)  # fmt: skip

logger = logging.getLogger("async_lowvram")


class Readout:
    """`status()` from any thread. While a model is being converted it repeats what was last known of the mover."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._key: Any = None

    def status(self) -> dict[str, Any]:
        """
        {"ram": …, "cuda": …} as `/sdapi/v1/memory` has them, and "async_lowvram": {
            the keys of `State.facts`, platform, remembers, interval_s,
            choice: {enabled, buffer_mb}   what the page's controls should show
            state                          "off", "next" (from the next image on), "busy" or "streaming"
            model, sampling                its name; whether an image is being made
            forwards, measured             of its UNet since it streams; whether its times are known
            advice                         see `advice`
            revision                       changes when `DETAILS` has a new curve; 0 while it has none
            and the keys of STATS, null while unknown; last_error until the next image }
        """
        choice, counters = STANDING.get(), memory(STATE.host.device)
        ours: dict[str, Any] = {
            **STATE.facts(),
            "platform": sys.platform,
            "remembers": bool(option(REMEMBER_OPTION, True)),
            "interval_s": option(INTERVAL_OPTION, 1),
            "choice": asdict(choice),
            **self._mover(counters),
        }
        ours["last_error"] = STATE.last_error if STATE.error_is_new else None
        ours.setdefault("state", "next" if choice.enabled else "off")
        return {**counters, "async_lowvram": ours}

    def _mover(self, counters: dict[str, Any]) -> dict[str, Any]:
        if not CONVERSIONS.lock.acquire(blocking=False):
            return {**self._last, "state": "busy"}
        try:
            found = _unet()
        finally:
            CONVERSIONS.lock.release()
        if found is None:
            self._last = {"model": None, "forwards": 0, "sampling": False, "revision": 0, "advice": None}
            self._last.update(dict.fromkeys(STATS), measured=False)
            self._key = None
            return dict(self._last)
        name, mover, sampling, on_gpu = found
        key = (id(mover), mover.forwards, mover.vram_mb, on_gpu)
        if sampling or key != self._key:
            try:
                stats = mover.stats()
            except Exception as error:  # it is being packed anew in another thread: the next call will tell
                logger.debug("no statistics now: %r", error)
                return {**self._last, "state": "busy"}
            self._last = {"model": name, **{field: stats.get(field) for field in STATS}}
            self._last.update(forwards=mover.forwards, measured=mover.workload() is not None)
            self._key = key
        sampling |= bool(getattr(getattr(shared, "state", None), "job", ""))
        self._last.update(sampling=sampling, revision=DETAILS.revision_of(mover, sampling))
        self._last["advice"] = advice(DETAILS.curve_of(mover), self._last, counters)
        return {**self._last, "state": "streaming"}


def _unet() -> tuple[str, Mover, bool, bool] | None:
    """The UNet that streamed last: (its model's name, its mover, is it in a forward, is it on the GPU)."""
    found = [
        (conversion.name, stage.components[0].mover, stage.busy, stage.on_gpu)
        for _, conversion in CONVERSIONS.items()
        for stage in conversion.stages
        if stage.name == "unet"
    ]
    return max(found, key=lambda entry: (entry[2], entry[3], entry[1].forwards), default=None)


READOUT = Readout()
