"""Takes pictures of the page of a real webui in headless Chromium.

    WEBUI_DIR=… python tests/ui/screenshots.py                   those in docs/images
    WEBUI_DIR=… python tests/ui/screenshots.py --states FOLDER   every state, in both themes, 1400 and 380 pixels wide

The environment is that of tests/webui/real_webui.py. On a machine without a GPU the CPU backend is used, with a bus
slowed to `--bus-gbps`, so that there is something to see. What the page shows of a card can be recorded where there is
one, and replayed here:

    python tests/ui/screenshots.py --record http://127.0.0.1:7860/ recorded.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tests" / "webui"), str(HERE)]
SIZE_PX, STEPS = 256, 20
WIDTHS, THEMES = (1400, 380), ("light", "dark")
CARD = {"free": 60 << 20, "used": (4 << 30) - (60 << 20), "total": 4 << 30}
SLOW_BUS = """
import lib_async_mover
from lib_async_mover.bench.throttle import throttled_backend

lib_async_mover.backend_for = lambda device: throttled_backend(device, {gbps})
"""


def record(url: str, target: Path) -> None:
    """The two answers that the page draws."""
    answers = {}
    for name in ("status", "details"):
        with urllib.request.urlopen(f"{url.rstrip('/')}/async-lowvram/{name}", timeout=10) as answer:
            answers[name] = json.load(answer)
    target.write_text(json.dumps(answers) + "\n")


def start_webui(folder: Path, gbps: float | None, *flags: str, backend: str = "cpu") -> Any:
    import torch
    from real_webui import RealWebui

    if gbps:
        scripts = folder / "extensions" / "slow-bus" / "scripts"
        scripts.mkdir(parents=True)
        (scripts / "slow_bus.py").write_text(SLOW_BUS.format(gbps=gbps))
    env = {} if torch.cuda.is_available() else {"ASYNC_LOWVRAM_BACKEND": backend}
    return RealWebui(folder, ("--lowvram", *flags), extension=True, env=env, page=True)


class Photographer:
    """One page of one webui, at each width and theme in turn: what is on it stays."""

    def __init__(self, browser: Any, url: str, out: Path, recorded: dict[str, Any]) -> None:
        from visit import Visit

        self.out = out
        self.one = Visit(browser, url, width=1400)
        self.page = self.one.page
        for name, answer in recorded.items():
            body = json.dumps(answer)
            self.page.route(f"**/async-lowvram/{name}", lambda route, body=body: route.fulfill(json=json.loads(body)))
        self.one.rest(2500)

    def take(self, name: str, part: Any, theme: str, width: int, height: int = 2400) -> None:
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.evaluate("dark => document.body.classList.toggle('dark', dark)", theme == "dark")
        self.one.rest(600)
        part.screenshot(path=self.out / f"{name}.png")

    def everywhere(self, name: str, part: Any = None) -> None:
        for width in WIDTHS:
            for theme in THEMES:
                self.take(f"{name}-{width}-{theme}", part or self.one.accordion(), theme, width)

    def start(self, steps: int = STEPS) -> None:
        self.page.set_viewport_size({"width": 1400, "height": 1300})
        for name, value in (("width", SIZE_PX), ("height", SIZE_PX), ("steps", steps)):
            field = self.page.locator(f"#txt2img_{name} input[type=number]")
            field.fill(str(value))
            field.blur()
        self.page.locator("#txt2img_prompt textarea").fill("a cat")
        self.page.locator("#txt2img_generate").click()

    def finish(self) -> None:
        """Until the image is there, and what it says of it."""
        for condition in (RUNNING, f"!({RUNNING})"):
            self.page.wait_for_function(condition, timeout=120_000)
        self.one.rest(4000)

    def settings(self) -> Any:
        self.page.locator("#tabs > .tab-nav button", has_text="Settings").click()
        self.page.locator("#settings .tab-nav button", has_text="Async lowvram").click()
        return self.page.locator("#settings_async_lowvram")


RUNNING = "document.querySelector('#txt2img_interrupt').getClientRects().length > 0"


def pictures(camera: Photographer, size_mb: int, live: bool) -> None:
    """Those in the documents: from a second image, whose prediction and measurement belong together."""
    one = camera.one
    one.enable()
    one.type_size(str(size_mb))
    for _ in range(2 if live else 0):
        camera.start()
        camera.finish()
    one.unfold()
    for theme in THEMES:
        camera.take(f"accordion-{theme}", one.accordion(), theme, 1400)
    camera.take("accordion-narrow", one.accordion(), "light", 380)
    one.accordion().locator("summary").click()
    camera.take("page", camera.page, "dark", 1400, 1110)
    camera.take("settings", camera.settings(), "light", 1400)


def states(camera: Photographer, size_mb: int) -> None:
    """Each as a user meets it, one after the other."""
    one = camera.one
    one.accordion().locator(".label-wrap").click()
    camera.everywhere("1-off")
    one.part("do").click()
    one.rest(1500)
    camera.everywhere("2-idle")
    one.type_size(str(size_mb))
    camera.start(steps=60)
    one.rest(3000)
    camera.everywhere("3-running")
    camera.page.locator("#txt2img_interrupt").click()
    camera.finish()
    camera.start(steps=8)
    camera.finish()
    camera.everywhere("4-after-8-steps")
    camera.start(steps=20)
    camera.finish()
    one.unfold()
    camera.everywhere("5-after-20-steps")
    camera.page.route("**/async-lowvram/status", nearly_full)
    one.rest(2500)
    one.accordion().locator("summary").click()
    camera.everywhere("6-nearly-full")
    camera.page.unroute_all(behavior="ignoreErrors")


def nearly_full(route: Any) -> None:
    """This machine has no card to fill: the counters are played, and what the server says of them."""
    answer = route.fetch().json()
    ours = answer["async_lowvram"]
    advice = {"kind": "full", "mb": 16, "now": ours["it_s"], "it_s": 0.9 * ours["it_s"], "enough_mb": 16}
    answer["cuda"] = {"system": CARD}
    ours.update(advice=advice, platform="win32")
    route.fulfill(json=answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", nargs=2, metavar=("URL", "FILE"))
    parser.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--states", type=Path, metavar="FOLDER")
    parser.add_argument("--bus-gbps", type=float, default=0.04)
    parser.add_argument("--buffer-mb", type=int, default=20)
    given = parser.parse_args()
    if given.record:
        record(given.record[0], Path(given.record[1]))
        return
    from chromium import FLAGS, chromium
    from playwright.sync_api import sync_playwright

    out = given.states or ROOT / "docs" / "images"
    out.mkdir(parents=True, exist_ok=True)
    recorded = json.loads(given.replay.read_text()) if given.replay else {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        webui = start_webui(Path(tempfile.mkdtemp()), given.bus_gbps)
        try:
            camera = Photographer(browser, webui.url, out, recorded)
            if given.states:
                states(camera, given.buffer_mb)
            else:
                pictures(camera, given.buffer_mb, live=not recorded)
        finally:
            webui.stop()
        if given.states:
            webui = start_webui(Path(tempfile.mkdtemp()), None, backend="")
            try:
                camera = Photographer(browser, webui.url, out, {})
                refused = camera.page.locator("#script_txt2img_async_lowvram_refused")
                refused.locator(".label-wrap").click()
                camera.everywhere("7-refused", refused)
            finally:
                webui.stop()
        browser.close()


if __name__ == "__main__":
    main()
