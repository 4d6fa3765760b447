"""Which sentence the server chooses: by the curve, by what was asked for, and by what the card has left."""

from __future__ import annotations

import pytest

CURVE = [[mb, 1e3 / its, its] for mb, its in ((2, 3.9), (32, 4.0), (64, 4.4), (128, 5.0), (256, 5.9), (512, 6.0))]
GIB, MIB = 1 << 30, 1 << 20


def card(free_mib, reserved=0, allocated=0, peak=0):
    pair = {"reserved": {"current": reserved * MIB}, "allocated": {"current": allocated * MIB, "peak": peak * MIB}}
    return {"cuda": {"system": {"free": free_mib * MIB, "used": 4 * GIB - free_mib * MIB, "total": 4 * GIB}, **pair}}


NO_CARD = {"cuda": {"error": "unavailable"}}


@pytest.fixture
def advise(webui):
    from lib_async_mover.webui.page.advice import advice

    def found(used_mb, memory=NO_CARD, asked_mb=None, it_s=None, curve=CURVE):
        stats = {"budget_mb": used_mb, "vram_mb": used_mb if asked_mb is None else asked_mb, "it_s": it_s}
        return advice(curve, stats, memory)

    return found


def kind(found):
    return found["kind"], found["mb"]


def test_without_a_curve_there_is_none(advise):
    assert advise(64, curve=[]) is None
    assert advise(None) is None


def test_speeds_are_the_measured_ones_and_their_predicted_gain(advise):
    found = advise(64, it_s=4.0)
    assert found["kind"] == "larger" and (found["mb"], found["enough_mb"], found["now"]) == (256, 256, 4.0)
    assert found["it_s"] == pytest.approx(4.0 * 5.9 / 4.4)
    assert advise(64)["now"] == pytest.approx(4.4), "not measured yet"


def test_what_fits_is_offered(advise):
    assert kind(advise(64, card(3000))) == ("larger", 256)
    assert kind(advise(64, card(256 + 80))) == ("larger", 128)
    assert kind(advise(64, card(2000, peak=1750))) == ("copies", 64), "the last image needed the rest"
    assert kind(advise(64, card(1000, reserved=1000, peak=1500))) == ("larger", 256), "torch gives back what it keeps"


def test_a_smaller_one_that_is_as_fast(advise):
    assert kind(advise(512)) == ("smaller", 256)
    assert kind(advise(1.3, curve=CURVE[:1])) == ("best", 2), "never a size above the one in use"
    assert kind(advise(17, curve=[[16, 1, 6.0], [32, 1, 6.01]])) == ("best", 16)


def test_copies_may_be_halved_unless_they_are(advise, webui):
    tight = card(2000, peak=1750)
    webui.shared.opts.data["fp8_storage"] = "Disable"
    assert kind(advise(64, tight)) == ("copies_fp8", 64)
    webui.shared.opts.data["fp8_storage"] = "Enable"
    assert kind(advise(64, tight)) == ("copies", 64)


def test_auto_asks_for_nothing(advise):
    assert kind(advise(256, asked_mb=0)) == ("auto", 256)
    assert kind(advise(512, asked_mb=0)) == ("auto", 512)
    assert kind(advise(64, asked_mb=0)) == ("auto_most", 64)


def test_a_card_that_is_nearly_full(advise):
    assert kind(advise(256, card(100))) == ("full", 128)
    assert advise(256, card(100), it_s=5.9)["it_s"] == pytest.approx(5.0)
    assert kind(advise(32, card(100))) == ("full_most", 32), "there is no smaller one"
    assert kind(advise(256, card(100), asked_mb=0)) == ("full_most", 256)
    assert kind(advise(256, card(100, reserved=900, allocated=300))) == ("best", 256), "torch keeps 600 for later"
