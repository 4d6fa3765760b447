"""Small cards, played one after another in one running webui: the largest image and batch that each can make.

What a card cannot make, no smaller one can: each search is bounded by the card before it, and begins at a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.webui.images import Camera

TRIED_STEPS, TIMED_STEPS = 2, 6
LEAST_PX = 256
FILLED = 0.95  # of a card, when a guess is made from what images took on a larger one


def largest(fits: Callable[[int], bool], least: int, most: int, guess: int) -> int:
    """The largest of least…most for which `fits` holds, least - 1 for none. `fits` must not hold above one that fails.

    Two calls where the guess is right, and about two for each doubling of how far it is off.
    """
    fitting, failing, stride, at = least - 1, most + 1, 1, max(least, min(most, guess))
    while failing - fitting > 1:
        if fits(at):
            fitting = at
        else:
            failing = at
        if least <= fitting and failing <= most:
            at = (fitting + failing) // 2
        else:
            at = min(fitting + stride, most) if failing > most else max(failing - stride, least)
            stride *= 2
    return fitting


@dataclass
class Ladder:
    """What is made larger: the side in steps of `unit` pixels, or the batch. `load` is what its memory is linear in."""

    make: Callable[[int], None]
    load: Callable[[int], float]
    least: int
    most: int
    peaks: dict[int, float] = field(default_factory=dict)  # MiB at what was made, on any card

    def guess(self, card_mib: float) -> int | None:
        """By a line through the two largest peaks. None where there are no two."""
        known = sorted(self.peaks)[-2:]
        if len(known) < 2 or self.peaks[known[1]] <= self.peaks[known[0]]:
            return None
        (low, high), (first, second) = map(self.load, known), (self.peaks[one] for one in known)
        load = low + (FILLED * card_mib - first) * (high - low) / (second - first)
        return max((one for one in range(self.least, self.most + 1) if self.load(one) <= load), default=self.least)


class Cards:
    """Of one configuration. `answers` are those of the configurations before it: good guesses, by card and ladder."""

    def __init__(self, camera: Camera, answers: dict[tuple[float, str], int]) -> None:
        options = camera.options
        self._camera, self._answers, self._unit = camera, answers, options.px_step
        own_px = camera.size_px
        self._sides = Ladder(
            lambda side: self._try(side * self._unit, 1), lambda side: float(side * side),
            math.ceil(LEAST_PX / self._unit), options.most_px // self._unit,
        )  # fmt: skip
        self._batches = Ladder(lambda batch: self._try(own_px, batch), float, 1, options.most_batch)
        self._card = 0.0
        self._pixels: dict[str, str] = {}
        self._failures: dict[str, str] = {}
        self._peak_mib: float | None = None

    def measure(self, vram_gb: float, row: dict[str, Any]) -> None:
        """Fill in `row` for this card, not larger than the one before. Raises BenchError when time is up."""
        self._card, self._pixels, self._failures = vram_gb, {}, {}
        row.update(pixels=self._pixels, failures=self._failures)
        own_px = self._camera.size_px
        before = self._camera.webui.facts(vram_gb=vram_gb, reset=True)
        side = self._search("px", self._sides, own_px // self._unit)
        row["largest_px"] = side * self._unit
        fitting = int((row["largest_px"] / own_px) ** 2)  # the VAE takes one after another: no less than that
        row["largest_batch"] = self._search("batch", self._batches, fitting) if fitting else 0
        if side >= self._sides.least:
            row["pixels_sha256"] = self._pixels[str(row["largest_px"])]
            if self._camera.configuration.buffer_mb is not None:
                self._camera.make(TIMED_STEPS, row["largest_px"], 1)  # it may still be measuring, for its plan
            seconds = [self._camera.make(steps, row["largest_px"], 1).seconds for steps in (TRIED_STEPS, TIMED_STEPS)]
            row["ms_per_step"] = (seconds[1] - seconds[0]) * 1e3 / (TIMED_STEPS - TRIED_STEPS)
        row["oom_retries"] = max(0, self._camera.webui.facts()["oom_retries"] - before["oom_retries"])

    def _search(self, what: str, ladder: Ladder, otherwise: int) -> int:
        guess = self._answers.get((self._card, what))
        if self._camera.configuration.buffer_mb is None:  # else it fills any card, and its peaks tell nothing
            guess = ladder.guess(1024 * self._card) or guess

        def fits(one: int) -> bool:
            self._camera.clock.left_s(1)
            try:
                ladder.make(one)
            except BenchError as error:
                self._camera.clock.left_s(1)  # a request that was cut off tells nothing
                self._failures[_key(what, one, self._unit)] = str(error)[:300]
                self._camera.webui.facts()  # does it still live?
                return False
            if self._peak_mib:
                ladder.peaks[one] = self._peak_mib
            return True

        found = largest(fits, ladder.least, ladder.most, otherwise if guess is None else guess)
        ladder.most = max(found, ladder.least)
        self._answers[self._card, what] = found
        return found if found >= ladder.least else 0

    def _try(self, size_px: int, batch: int) -> None:
        self._camera.webui.facts(reset=True)
        image = self._camera.make(TRIED_STEPS, size_px, batch)
        self._pixels[_key("px", size_px, 1) if batch == 1 else _key("batch", batch, 1)] = image.sha256
        self._peak_mib = self._camera.webui.facts()["peak_mib"]


def _key(what: str, one: int, unit: int) -> str:
    return str(one * unit) if what == "px" else f"×{one}"
