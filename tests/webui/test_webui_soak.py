"""A real webui is left running: many generations, everything at random, and nothing is left behind.

ASYNC_LOWVRAM_SOAK is the number of generations (10 if unset); ASYNC_LOWVRAM_SEED the dice's seed.
"""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from lora_file import NAME, keep_lora
from real_webui import RealWebui, checkpoints

GENERATIONS = int(os.environ.get("ASYNC_LOWVRAM_SOAK", "10"))
SEED = int(os.environ.get("ASYNC_LOWVRAM_SEED", "1"))
GROWTH_MIB = 64  # of the process's peak in the last third of the generations over that before: memory comes and goes
SIZES = [(64, 64), (128, 64), (128, 128)]


def rss_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # not Linux
        return 0.0
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


class Soak:
    """Remembers the pixels of every choice of settings that was made before."""

    def __init__(self, server: RealWebui, dice: random.Random) -> None:
        self.server = server
        self.dice = dice
        self.pixels: dict[tuple, str] = {}
        self.repeated = 0
        self.titles = checkpoints(server)
        self.lora = keep_lora(server)

    def request(self) -> tuple[tuple, dict[str, Any]]:
        dice = self.dice
        title = dice.choice(self.titles)
        size = dice.choice(SIZES)
        lora = self.lora and "xl" not in title and dice.choice([0, 0, 0.5, 1])
        verb = dice.choice(["txt2img", "txt2img", "img2img", "hires"])
        steps = dice.choice([1, 3])
        key = title, size, lora, verb, steps
        prompt = f"a cat <lora:{NAME}:{lora}>" if lora else "a cat"
        body = {"verb": verb, "prompt": prompt, "steps": steps, "width": size[0], "height": size[1]}
        return key, body | {"settings": {"sd_model_checkpoint": title}}

    def script(self) -> list[Any]:
        return [self.dice.random() < 0.7, self.dice.choice([0, 16, 24, 256])]

    def generate(self) -> None:
        key, body = self.request()
        if body["verb"] == "img2img":
            # The webui encodes the image with the random numbers that the generation before left, with or without us.
            self.server.image(**body, script=self.script())
        found = self.server.image(**body, script=self.script())
        known = self.pixels.setdefault(key, found)
        self.repeated += known is not found
        assert found == known, (key, self.server.lines()[-5:])

    def interrupted(self) -> None:
        """Somewhere in the middle; it may be over before."""
        _, body = self.request()
        script, errors = self.script(), []

        def run() -> None:
            try:
                self.server.image(**body | {"steps": 12}, script=script)
            except IndexError:  # it was stopped before there was an image to answer with
                pass
            except OSError as error:  # urllib's
                errors.append(error)

        worker = threading.Thread(target=run)
        worker.start()
        time.sleep(self.dice.uniform(0.05, 1.0))
        self.server.call(self.dice.choice(["/sdapi/v1/interrupt", "/sdapi/v1/skip"]), {})
        worker.join(120)
        assert not worker.is_alive() and not errors

    def step(self) -> None:
        dice = self.dice
        if dice.random() < 0.15:
            self.interrupted()
        if dice.random() < 0.05:
            self.server.call("/sdapi/v1/unload-checkpoint", {})
            self.server.call("/sdapi/v1/reload-checkpoint", {})
        if dice.random() < 0.05:
            self.server.call("/sdapi/v1/options", {"sd_checkpoints_limit": dice.choice([1, 2])})
        self.generate()

    def rest(self, enabled: bool) -> dict[str, float]:
        """Back to the first checkpoint, alone, without a LoRA; what is held then."""
        self.server.call("/sdapi/v1/options", {"sd_checkpoints_limit": 1})
        for title in reversed(self.titles):
            settings = {"sd_model_checkpoint": title}
            self.server.image(settings=settings, steps=3, width=64, height=64, script=[enabled, 16])
        return self.server.call("/probe/held") | {"rss_mib": rss_mib(self.server.pid)}


@pytest.mark.parametrize("flags", [("--async-lowvram",), ()], ids=["flag", "resident"])
def test_nothing_is_left_behind(real_webui, flags, record_property):
    server = real_webui(*flags, inside=("locking",))
    soak = Soak(server, random.Random(SEED))
    soak.rest(True)
    streaming = soak.rest(True)
    assert streaming["pinned"] > 0
    peaks_mib: list[float] = []
    for _ in range(GENERATIONS):
        soak.step()
        assert server.call("/probe/held")["device"] == 0, "between generations nothing of ours is on the device"
        peaks_mib.append(rss_mib(server.pid))
    end = soak.rest(True)
    off = soak.rest(False)
    last = GENERATIONS * 2 // 3
    before_mib, after_mib = max(peaks_mib[:last]), max(peaks_mib[last:])
    figures = {"start": streaming, "end": end, "off": off, "peak_mib": [before_mib, after_mib],
               "images": len(soak.pixels), "repeated": soak.repeated}  # fmt: skip
    for name, value in figures.items():
        record_property(name, value)
    print(figures)
    assert end["pinned"] == streaming["pinned"]
    assert off["pinned"] == 0
    assert off["device"] == end["device"] == 0
    if GENERATIONS >= 25:
        assert soak.repeated > GENERATIONS // 20, "the comparison compared something"
        assert after_mib - before_mib < GROWTH_MIB, figures
    assert not server.streams
    server.check_quiet()
