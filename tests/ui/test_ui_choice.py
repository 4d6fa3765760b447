"""What is chosen by hand: on or off, and the size. The page shows it at once, and nothing else switches."""

from __future__ import annotations

import time

import pytest

AT_ONCE_MS = 900  # a status comes once a second


def soon(one, text):
    from playwright.sync_api import expect

    expect(one.part("sentence")).to_contain_text(text, timeout=AT_ONCE_MS)


def known(one):
    """What the server has of the choice."""
    return one.page.evaluate("fetch('async-lowvram/status').then((a) => a.json())")["async_lowvram"]["choice"]


@pytest.mark.parametrize("interval", ["30", "0"])
def test_on_and_off_are_said_at_once_however_seldom_the_server_is_asked(serve, visit, interval):
    one = visit(serve("--interval", interval).url)
    one.enable()
    soon(one, "On" if interval == "0" else "On from the next image on")
    assert one.part("switch").inner_text() == "On"
    one.box().click()
    soon(one, "Off")
    assert one.part("switch").inner_text() == "Off"
    one.box().click()
    one.rest(1500)
    soon(one, "On")
    assert one.polls == 1, "the answer to the choice was enough"


def test_without_a_readout_no_number_grows_old(serve, visit):
    one = visit(serve("--interval", "0", "--profile", "sd15_b2_512", "--card", "4,2.6,linux").url)
    one.enable()
    soon(one, "The readout is switched off in Settings")
    assert one.readout().text_content() == ""
    assert one.part("facts").is_hidden()


def test_unticking_changes_header_and_sentence(serve, visit):
    one = visit(serve("--profile", "sd15_b2_512", "--card", "4,2.6,linux").url)
    one.enable()
    one.says(one.readout(), "it/s")
    one.box().click()
    soon(one, "Off from the next image on")
    assert one.part("switch").inner_text() == "Off" and "it/s" not in one.readout().text_content()
    one.rest(2500)
    assert one.part("sentence").text_content() == "Off from the next image on."


def test_folding_switches_nothing(serve, visit):
    one = visit(serve("--interval", "2").url)
    one.says(one.readout(), "")
    assert not one.box().is_checked()
    header = one.accordion().locator(".label-wrap")
    header.click()
    one.size().wait_for(state="visible")
    one.rest(900)
    assert not one.box().is_checked(), "reading the panel switched it on"
    header.click()
    one.size().wait_for(state="hidden")
    one.box().click()
    one.size().wait_for(state="visible")
    header.click()
    one.size().wait_for(state="hidden")
    one.rest(900)
    assert one.box().is_checked(), "folding the panel switched it off"
    assert known(one)["enabled"]


def test_a_box_ticked_before_the_first_answer_stays_ticked(serve, visit):
    one = visit(serve("--config", "/nonexistent/config.json").url, delay_s=1.5)
    one.box().click()
    one.rest(3500)
    assert one.box().is_checked()
    soon(one, "On from the next image on")


@pytest.mark.parametrize(
    ("typed", "used"), [("7", "16"), ("123.4", "123"), ("1e3", "1000"), ("-5", "0"), ("", "0"), ("99999", "65536")]
)
def test_a_typed_size_is_shown_as_it_is_used(serve, visit, typed, used):
    one = visit(serve("--interval", "3").url)
    one.enable()
    one.type_size(typed)
    one.has_size(used)
    one.has_size(used, "img2img")
    deadline = time.monotonic() + 3
    while known(one)["buffer_mb"] != int(used) and time.monotonic() < deadline:
        one.rest(200)
    assert known(one)["buffer_mb"] == int(used)


def test_a_number_half_typed_is_left_alone(serve, visit):
    one = visit(serve("--interval", "3").url)
    one.enable()
    one.size().fill("")
    one.size().press_sequentially("7")
    one.rest(1200)
    assert one.size().input_value() == "7"
    one.size().press_sequentially("68")
    one.size().blur()
    one.has_size("768", "img2img")


def test_small_sizes_have_most_of_the_slider(serve, visit):
    one = visit(serve("--profile", "sd15_b2_512", "--card", "4,2.6,linux").url)
    one.enable()
    one.says(one.part("do"), "Use")  # there is a curve
    seen = []
    slider = one.part("range")
    slider.focus()
    one.page.keyboard.press("Home")
    for _ in range(int(slider.get_attribute("max"))):
        one.page.keyboard.press("ArrowRight")
        seen.append(int(one.size().input_value()))
    assert seen == sorted(set(seen)) and seen[-1] == 1640, "to the model's size"
    assert sum(size <= 512 for size in seen) > len(seen) / 2
    assert slider.get_attribute("aria-valuetext") == "1640 MB"
