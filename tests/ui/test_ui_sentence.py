"""The sentence and its button: what limits this image, and the next best step."""

from __future__ import annotations

import re

import pytest

CARD = ("--card", "4,2.6,linux")
SD15 = ("--profile", "sd15_b2_512")


def sentence(serve, visit, *arguments, text=""):
    one = visit(serve(*arguments).url)
    one.enable()
    one.until("/\\d/.test(document.querySelector('#tab_txt2img [data-alv=sentence]').textContent)")
    return one, one.says(one.part("sentence"), text)


@pytest.mark.parametrize("steps", [2, 8])
def test_pauses_between_images_are_no_speed(serve, visit, steps):
    one = visit(serve("--interval", "1", *CARD).url)
    one.enable()
    for _ in range(3):
        one.generate(steps)
        for _ in range(3):
            one.rest(700)
            shown = re.search(r"([\d.]+) it/s", one.readout().text_content())
            assert shown is None or float(shown.group(1)) > 4, "a pause of 2 s was taken for a step"
    assert shown is not None


@pytest.mark.parametrize("steps", [3, 8, 12])
def test_it_measures_only_while_an_image_is_made(visit, steps):
    from pages import Server

    server = Server("--interval", "1")
    try:
        one = visit(server.url)
        one.enable()
        one.generate(steps)
        one.rest(2500)
        text = one.part("sentence").text_content()
        assert "Measuring" not in text and "after this image" not in text
        one.unfold()
        if steps == 3:
            assert text.startswith("A few more steps are needed")
        elif one.part("curve").is_visible():
            assert "it/s" in text
    finally:
        server.stop()


def test_a_larger_buffer_is_offered_with_its_gain_and_one_press_takes_it(serve, visit):
    one, text = sentence(serve, visit, *SD15, *CARD, text="would give")
    now, size, then = re.fullmatch(r"([\d.]+) it/s\. (\d+) MB would give ([\d.]+) it/s\.", text).groups()
    assert float(then) > 1.03 * float(now)
    one.part("do").click()
    assert one.size().input_value() == size
    one.says(one.part("sentence"), f"{size} MB from the next image on: about ")
    assert one.part("do").is_hidden()


def test_a_smaller_one_is_offered_with_what_it_leaves(serve, visit):
    one, text = sentence(serve, visit, *SD15, "--budget-mb", "1500", "--card", "8,3,linux", text="would do")
    found = re.search(r"as fast as this card can\. (\d+) MB would do, and leave (\d+) MB for larger images", text)
    assert int(found.group(1)) + int(found.group(2)) == 1500
    assert one.part("do").inner_text() == f"Use {found.group(1)} MB"


def test_at_the_knee_nothing_is_offered(serve, visit):
    one, text = sentence(serve, visit, *SD15, "--budget-mb", "640", *CARD, text="as fast")
    assert re.fullmatch(r"[\d.]+ it/s, as fast as this card can\.", text) and one.part("do").is_hidden()


@pytest.mark.parametrize(("budget", "words"), [("640", "more would gain nothing"), ("256", "the most that was free")])
def test_auto_says_what_it_chose_and_never_asks_for_more(serve, visit, budget, words):
    one, text = sentence(serve, visit, *SD15, "--automatic", "--budget-mb", budget, *CARD, text="Auto chose")
    assert f"Auto chose {budget} MB" in text and words in text and one.part("do").is_hidden()


def test_where_no_larger_one_fits_the_bus_is_named(serve, visit):
    one, text = sentence(serve, visit, *SD15, "--card", "4,3.7,linux", text="bus")
    assert "This card's bus is the limit (12.0 GB/s)" in text and one.part("do").is_hidden()


def test_no_jargon_outside_the_details(serve, visit):
    for arguments in ((), CARD, (*SD15, *CARD), (*SD15, "--card", "4,3.7,linux")):
        one = visit(serve(*arguments).url)
        one.enable()
        one.rest(1500)
        shown = one.accordion().inner_text()
        for word in ("bound", "page-locked", "take turns", "resident", "stall"):
            assert word not in shown
