"""The accordion as a person meets it: on a page without a model that streams, and with a played card that has one."""

from __future__ import annotations

import json
import re

import pytest

PLAYED = ("--profile", "sd15_b2_512", "--card", "4,2.6,linux")


@pytest.fixture
def fresh(serve, visit):
    return visit(serve().url)


@pytest.fixture
def played(serve, visit):
    one = visit(serve(*PLAYED).url)
    one.enable()
    one.unfold()
    one.part("curve").wait_for(state="visible")
    return one


def test_before_the_first_image_it_says_what_will_happen(fresh):
    fresh.enable()
    fresh.says(fresh.part("sentence"), "On from the next image on")
    assert fresh.part("do").is_hidden() and fresh.part("auto").is_visible()
    fresh.unfold()
    assert fresh.part("curve").is_hidden() and fresh.part("facts").is_hidden() and fresh.part("picture").is_hidden()


def test_off_has_a_button_that_switches_on(serve, visit):
    fresh = visit(serve("--interval", "4").url)
    fresh.says(fresh.readout(), "")
    fresh.accordion().locator(".label-wrap").click()
    fresh.says(fresh.part("sentence"), "Off: the webui moves the weights itself")
    fresh.part("do").click()
    fresh.says(fresh.part("sentence"), "On from the next image on")
    assert fresh.box().is_checked() and fresh.box("img2img").is_checked()


def test_the_readout_moves_with_a_generation(serve, visit):
    one = visit(serve("--interval", "1").url)
    one.enable()
    first = one.generate()
    one.says(one.readout(), "it/s")
    one.unfold()
    one.says(one.part("used"), "MB stay")
    one.box().click()
    assert one.generate().split()[2] == first.split()[2], "the same image without it"


def test_header_shows_state_memory_and_speed(played):
    line = played.says(played.readout(), "it/s")
    assert re.fullmatch(r"VRAM 2\.6 / 4\.0 GB · \d\.\d\d it/s", line)
    assert played.readout().get_attribute("title") == line
    assert played.part("switch").inner_text() == "On"


def test_presets_come_from_the_curve_and_auto_is_zero(played):
    played.until("document.querySelectorAll('#tab_txt2img [data-alv=preset]:not([hidden])').length === 3")
    buttons = played.part("preset")
    texts = [b.inner_text() for b in buttons.all() if b.is_visible()]
    assert [re.fullmatch(r"(\d+) MB: \d\.\d\d it/s", text).group(1) for text in texts] == ["320", "640", "1640"]
    promised = re.search(r"640 MB would give ([\d.]+)", played.says(played.part("sentence"), "would give")).group(1)
    assert texts[1] == f"640 MB: {promised} it/s", "one promise for one size"
    buttons.nth(1).click()
    assert played.size().input_value() == "640" and buttons.nth(1).get_attribute("aria-pressed") == "true"
    played.says(played.part("sentence"), "640 MB from the next image on: about")
    played.part("auto").click()
    assert played.size().input_value() == "0"


def test_the_curve_works_by_keyboard_and_speaks(played):
    svg = played.part("curve-svg")
    assert svg.get_attribute("role") == "slider"
    svg.focus()
    played.page.keyboard.press("Home")
    played.page.keyboard.press("ArrowRight")
    assert re.match(r"64 MB: \d", svg.get_attribute("aria-valuetext"))
    played.page.keyboard.press("Enter")
    assert played.size().input_value() == "64"


def test_everything_has_a_name(played):
    names = played.accordion().evaluate(
        """(accordion) => [...accordion.querySelectorAll('.alv :is(button, svg, figure, summary, input)')]
            .filter((e) => e.getClientRects().length && e.getAttribute('aria-hidden') !== 'true')
            .map((e) => e.innerText || e.getAttribute('aria-label') ||
                 document.getElementById(e.getAttribute('aria-labelledby')).innerText)"""
    )  # fmt: skip
    assert all(names) and len(names) >= 9


def test_residency_names_a_block(played):
    assert played.part("resident").get_attribute("d") and played.part("streamed-bars").get_attribute("d")
    assert "input blocks" in played.part("group").all_text_contents()
    played.part("blocks-svg").hover()
    played.says(played.part("blocks-note"), "ms a step")


def test_updates_add_and_remove_no_elements(played):
    played.rest(1500)
    before, polls = played.page.evaluate("window.childListChanges"), played.polls
    played.rest(2500)
    assert played.polls > polls
    assert played.page.evaluate("window.childListChanges") == before


def test_both_tabs_show_one_choice(played):
    played.type_size("768")
    played.has_size("768", "img2img")
    assert played.box("img2img").is_checked()


def test_the_choice_outlives_reload_and_restart(visit, tmp_path):
    from pages import Server

    config = tmp_path / "config.json"
    server = Server("--config", str(config))
    try:
        one = visit(server.url)
        one.enable()
        one.type_size("384")
        one.has_size("384", "img2img")
        one.rest(900)
        one.reload()
        one.has_size("384")
        assert one.box().is_checked()
    finally:
        server.stop()
    kept = json.loads(config.read_text())
    assert kept["async_lowvram_enabled"] is True and kept["async_lowvram_buffer_mb"] == 384
    server = Server("--config", str(config))
    try:
        two = visit(server.url)
        two.size().wait_for(state="visible")
        assert two.size().input_value() == "384" and two.box().is_checked()
    finally:
        server.stop()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 380])
def test_legible_in_both_themes_and_on_a_phone(serve, visit, theme, width):
    one = visit(serve(*PLAYED).url, theme=theme, width=width)
    one.enable()
    one.unfold()
    one.part("curve").wait_for(state="visible")
    assert one.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), "scrolls sideways"
    for name in ("sentence", "readout", "switch", "curve-note", "used"):
        assert one.page.evaluate(CONTRAST, one.part(name).element_handle()) > 3.0, name


CONTRAST = """(element) => {
    const channels = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (c) => {
        const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ink = light(channels(getComputedStyle(element).color));
    let behind = element, colour = [0, 0, 0, 0];
    while (behind && (colour.length > 3 && colour[3] === 0)) {
        colour = channels(getComputedStyle(behind).backgroundColor);
        behind = behind.parentElement;
    }
    const paper = light(colour);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
}"""


def test_a_nearly_full_card_is_mentioned_calmly(serve, visit):
    one = visit(serve("--profile", "sd15_b2_512", "--card", "4,3.95,win32").url)
    one.enable()
    one.says(one.part("note"), "Prefer No Sysmem Fallback")
    text = one.part("sentence").text_content()
    assert text.startswith("VRAM is nearly full: 3.9 of 4.0 GB. 128 MB would leave 128 MB more")
    one.part("do").click()
    assert one.size().input_value() == "128"


def test_a_host_that_is_left_alone_shows_the_reason_and_no_control(serve, visit):
    one = visit(serve("--refuse").url)
    one.page.locator("#script_txt2img_async_lowvram_refused .label-wrap").click()
    one.says(one.page.locator("#script_txt2img_async_lowvram_refused"), "there is no CUDA or XPU device")
    assert one.page.locator("#script_txt2img_async_lowvram_refused input").count() == 0
    assert one.polls == 0


def test_under_a_subpath_of_a_proxy(serve, visit):
    one = visit(serve(*PLAYED).url, subpath="sd/")
    one.says(one.readout(), "VRAM 2.6 / 4.0 GB")
    assert one.polled[0].endswith("/sd/async-lowvram/status")


def test_a_translation_reaches_what_moves(serve, visit):
    one = visit(serve("--localization", "ja_JP", *PLAYED).url)
    one.enable()
    one.says(one.part("switch"), "オン")
    one.says(one.part("do"), "640 MB を使う")
