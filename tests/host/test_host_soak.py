"""A person leaves it on and forgets it: many generations, everything at random, and nothing is left behind.

ASYNC_LOWVRAM_SOAK is the number of generations (25 if unset); ASYNC_LOWVRAM_SEED the dice's seed.
"""

from __future__ import annotations

import gc
import os
import random
import threading
from pathlib import Path

import pytest
import torch
from lora_stub import Lora

GENERATIONS = int(os.environ.get("ASYNC_LOWVRAM_SOAK", "25"))
SEED = int(os.environ.get("ASYNC_LOWVRAM_SEED", "1"))
GROWTH_MIB = 48


class Interrupted(BaseException):
    pass


def rss_mib() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def interrupt_at(step: int):
    def between(now: int) -> None:
        if now == step:
            raise Interrupted

    return between


def clean(model, lora, webui) -> None:
    """Before its weights are replaced, the LoRA goes off and forgets them, as the host sees to."""
    lora.scale = 0.0
    webui.txt2img()
    with torch.no_grad():
        model.encode_first_stage(torch.zeros(1, 3, 8, 8))
    for part in model.modules():
        vars(part).pop("lora_backup", None)
        vars(part).pop("lora_scale", None)


@pytest.mark.parametrize("flags", [("--async-lowvram",), ()])
def test_nothing_is_left_behind(webui, stock_image, pinned, flags):
    dice = random.Random(SEED)
    threads = set(threading.enumerate())
    webui.start(*flags)
    webui.load_model("sd1", 1)
    lora = Lora()
    name, enabled, rss = ("sd1", 1), bool(flags), 0.0
    try:
        for number in range(GENERATIONS):
            if number == GENERATIONS // 3:
                gc.collect()
                rss = rss_mib()
            if dice.random() < 0.3:
                clean(webui.shared.sd_model, lora, webui)
                name = dice.choice(["sd1", "sd2", "sdxl", "sd3"]), dice.choice([1, 2])
                webui.switch_to(*name, limit=dice.choice([1, 2]))
            lora.scale = dice.choice([0.0, 0.0, 0.02, 0.05])
            enabled = dice.random() < 0.75
            args = enabled, dice.choice([0, 16, 64, 256])
            if dice.random() < 0.2:
                with pytest.raises(Interrupted):
                    webui.txt2img(*args, steps=3, between=interrupt_at(dice.randrange(3)))
            if dice.random() < 0.3:
                assert torch.equal(webui.img2img(*args), stock_image(*name, verb="img2img")), (number, name)
            kwargs = {"hires": dice.random() < 0.3, "preview": dice.random() < 0.2, "steps": dice.choice([1, 2, 4])}
            assert torch.equal(webui.txt2img(*args, **kwargs), stock_image(*name, **kwargs)), (number, name, kwargs)
            assert not any(mover.busy or mover.stats()["arena_mib"] for mover in webui.conversions.movers()), number
            if dice.random() < 0.1:
                dice.choice([webui.reload_ui, webui.reload_script_body])()
        gc.collect()
        if GENERATIONS >= 25 and rss:
            assert rss_mib() - rss < GROWTH_MIB
        clean(webui.shared.sd_model, lora, webui)
    finally:
        lora.remove()
    for model in list(webui.sd_models.loaded):
        webui.shared.sd_model = model
        webui.txt2img(False, 0)
    del model
    gc.collect()
    assert not webui.conversions.items()
    assert pinned() == 0
    left = [thread for thread in set(threading.enumerate()) - threads if not isinstance(thread, threading.Timer)]
    assert not left
