"""The search for the largest image and batch: a webui that exists on paper, with cards that hold so many pixels."""

from __future__ import annotations

import math

import pytest

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.webui.cards import Cards, largest
from lib_async_mover.bench.webui.images import Clock, Image
from lib_async_mover.bench.webui.options import FLAGS, Configuration, Options

MIB_OF_PIXEL, MIB_OF_BATCH = 1.1e-3, 60.0  # about SD1.5's
OWN_MIB = {"": 2600.0, "--medvram": 1750.0, "--lowvram": 700.0, "--async-lowvram": 400.0}


class PaperWebui:
    """`facts` and `make` of a webui whose images take memory linear in their pixels and number."""

    def __init__(self, configuration, **options):
        self.options = Options(webui=None, **options)
        self.configuration, self.webui, self.clock = configuration, self, Clock(None)
        self.size_px, self.tried, self.timed, self.retries = 512, [], [], 0
        self.made_mib, self.card_mib = 0.0, math.inf

    def facts(self, vram_gb=None, reset=False):
        self.card_mib = self.card_mib if vram_gb is None else 1024 * vram_gb
        return {"peak_mib": self.made_mib, "oom_retries": self.retries}

    def make(self, steps, size_px=None, batch=None):
        (self.timed if steps == 6 else self.tried).append((size_px, batch))
        own = OWN_MIB[self.configuration.flag]
        self.made_mib = own + MIB_OF_PIXEL * size_px**2 + MIB_OF_BATCH * (batch - 1) * (size_px / 512) ** 2
        if self.made_mib > self.card_mib:
            raise BenchError("HTTP 500: OutOfMemoryError: CUDA out of memory")
        if self.configuration.buffer_mb is not None:
            self.made_mib, self.retries = self.card_mib, self.retries + 1
        return Image(0.5 + 0.04 * steps, f"{size_px} {batch}")


def most_px(flag, vram_gb, step=64):
    room = 1024 * vram_gb - OWN_MIB[flag]
    found = int(math.sqrt(max(0.0, room) / MIB_OF_PIXEL)) // step * step
    return min(found, 2048) if found >= 256 else 0


@pytest.mark.parametrize("answer", range(0, 33))
@pytest.mark.parametrize("guess", [1, 2, 8, 31, 32, 99])
def test_the_largest_is_found(answer, guess):
    tried = []

    def fits(one):
        tried.append(one)
        return one <= answer

    assert largest(fits, 1, 32, guess) == answer
    assert len(tried) == len(set(tried)) and set(tried) <= set(range(1, 33))
    assert len(tried) <= 2 + 2 * math.log2(abs(min(guess, 32) - answer) + 1)


def test_all_cards_of_all_configurations_and_how_often_they_are_asked():
    answers, counts = {}, []
    for flag in FLAGS.values():
        webui = PaperWebui(Configuration(flag, 0 if "async" in flag else None))
        cards = Cards(webui, answers)
        for vram_gb in (8.0, 6.0, 4.0, 3.0, 2.0):
            row, before = {}, len(webui.tried)
            cards.measure(vram_gb, row)
            counts.append(len(webui.tried) - before)
            expected = most_px(flag, vram_gb)
            assert row["largest_px"] == expected, (flag, vram_gb)
            assert row["largest_batch"] >= 1 if expected >= 512 else row["largest_batch"] == 0
            assert row["oom_retries"] > 0 if "async" in flag and expected else row["oom_retries"] == 0
            if expected:
                assert row["ms_per_step"] == pytest.approx(40.0)
                assert row["pixels_sha256"] == row["pixels"][str(expected)] == f"{expected} 1"
                assert webui.timed[-1] == (expected, 1)
            assert all("OutOfMemoryError" in text for text in row["failures"].values())
            assert not set(row["pixels"]) & set(row["failures"])
    assert sum(counts) / len(counts) < 8, counts


def test_time_that_is_up_stops_it_and_is_no_answer():
    webui = PaperWebui(Configuration("--lowvram"))
    webui.clock = Clock(-1)
    row = {}
    with pytest.raises(BenchError, match="--limit-s"):
        Cards(webui, {}).measure(8.0, row)
    assert "largest_px" not in row and not row["failures"]


def test_a_webui_that_died_is_no_answer():
    webui = PaperWebui(Configuration("--lowvram"))

    def die(*_, **__):
        raise BenchError("the webui died")

    def first(**_):
        webui.facts = die
        return {"oom_retries": 0}

    webui.facts = first
    with pytest.raises(BenchError, match="died"):
        Cards(webui, {}).measure(8.0, {})
