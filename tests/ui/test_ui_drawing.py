"""Curve, bars and header as they are laid out: where things are, in pixels."""

from __future__ import annotations

import re

import pytest

SD15 = ("--profile", "sd15_b2_512", "--card", "4,2.6,linux")
TEXT = "(e) => { const r = document.createRange(); r.selectNodeContents(e); return r.getBoundingClientRect().toJSON() }"


def opened(serve, visit, *arguments, **options):
    one = visit(serve(*arguments).url, **options)
    one.enable()
    one.unfold()
    one.part("curve").wait_for(state="visible")
    one.until("document.querySelector('#tab_txt2img [data-alv=dot]').getAttribute('visibility') === 'visible'")
    return one


def number(part, name):
    return float(part.get_attribute(name))


def line_of(one):
    drawn = one.part("line").get_attribute("d")
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML]([\d.]+) ([\d.]+)", drawn)]


def on_line(line, x):
    (x0, y0), (x1, y1) = next(((a, b) for a, b in zip(line, line[1:], strict=False) if a[0] <= x <= b[0]))
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


@pytest.mark.parametrize("budget", ["60", "256", "500"])
def test_dot_and_ring_are_on_the_line(serve, visit, budget):
    one = opened(serve, visit, *SD15, "--budget-mb", budget)
    line = line_of(one)
    for name in ("dot", "ring"):
        mark = one.part(name)
        assert mark.get_attribute("visibility") == "visible"
        assert abs(number(mark, "cy") - on_line(line, number(mark, "cx"))) < 6, "played 2 % slower than predicted"
    one.part("preset").nth(0).click()
    assert number(one.part("ring"), "cx") != number(one.part("dot"), "cx"), "the ring is what is chosen"
    assert abs(number(one.part("ring"), "cy") - on_line(line, number(one.part("ring"), "cx"))) < 1


@pytest.mark.parametrize("part", [0.02, 0.3, 0.5, 0.9])
def test_hover_and_click_agree(serve, visit, part):
    one = opened(serve, visit, *SD15)
    svg = one.part("curve-svg")
    box = svg.bounding_box()
    place = {"x": box["width"] * part, "y": box["height"] * 0.5}
    svg.hover(position=place)
    size, its = re.match(r"(\d+) MB: ([\d.]+) it/s predicted", one.part("curve-note").inner_text()).groups()
    curve = one.page.evaluate("fetch('async-lowvram/details').then((a) => a.json())")["curve"]
    (speed,) = [point[2] for point in curve if point[0] == int(size)]
    assert abs(speed - float(its)) < 0.01, "the speed of that size, not of another"
    svg.click(position=place)
    assert one.size().input_value() == size


@pytest.mark.parametrize("width", [1400, 380])
def test_figures_take_all_the_width_and_letters_stay_legible(serve, visit, width):
    one = opened(serve, visit, *SD15, width=width)
    room = one.accordion().locator("details").bounding_box()["width"]
    for name in ("curve-svg", "blocks-svg"):
        assert one.part(name).bounding_box()["width"] > 0.95 * room
    heights = [label.bounding_box()["height"] for label in one.part("x-tick").all() if label.text_content().isdigit()]
    assert len(heights) >= 3 and min(heights) >= 10


@pytest.mark.parametrize("width", [1400, 380])
def test_the_header_keeps_apart_and_inside(serve, visit, width):
    one = opened(serve, visit, *SD15, width=width)
    header = one.accordion().locator(".label-wrap")
    title, arrow = header.locator("> span").first, header.locator("> span").last
    inside, name = header.bounding_box(), title.evaluate(TEXT)
    end = inside["x"] + inside["width"]
    for part in (one.part("switch"), one.readout()):
        box = part.evaluate(TEXT)
        assert box["left"] >= name["right"] + 6 or box["top"] >= name["bottom"] - 1, "glued to the title"
        assert box["right"] <= end + 1 and part.evaluate("(e) => e.scrollWidth <= e.clientWidth + 1"), "cut off"
    there = arrow.bounding_box()
    assert there["x"] + there["width"] <= end + 1 and abs(there["y"] - name["top"]) < 12, "the arrow left its place"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_streamed_bars_can_be_seen(serve, visit, theme):
    one = opened(serve, visit, *SD15, theme=theme)
    assert one.part("streamed-bars").evaluate(SEEN) > 2.5


SEEN = """(element) => {
    const channels = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (c) => {
        const [r, g, b] = c.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    let behind = element, paper = [0, 0, 0, 0];
    while (behind && paper.length > 3 && paper[3] === 0) {
        paper = channels(getComputedStyle(behind).backgroundColor);
        behind = behind.parentElement;
    }
    const style = getComputedStyle(element), ink = channels(style.fill), opacity = Number(style.opacity);
    const mixed = [0, 1, 2].map((i) => opacity * ink[i] + (1 - opacity) * paper[i]);
    const [a, b] = [light(mixed), light(paper.slice(0, 3))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


@pytest.mark.parametrize(
    ("budget", "there", "missing"), [("60", "streamed", "resident"), ("1700", "resident", "streamed")]
)
def test_the_legend_names_only_what_is_drawn(serve, visit, budget, there, missing):
    one = opened(serve, visit, *SD15, "--budget-mb", budget)
    assert one.part(f"legend-{there}").is_visible() and one.part(f"legend-{missing}").is_hidden()
