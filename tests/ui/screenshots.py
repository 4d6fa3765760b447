"""Takes the pictures in docs/images from the real webui in headless Chromium.

    WEBUI_DIR=… python tests/ui/screenshots.py [--replay recorded.json] [--bus-gbps 0.1]

The environment is that of tests/webui/real_webui.py. On a machine without a GPU the CPU backend is used. What the page
shows of a card can be recorded where there is one, and replayed here:

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
SIZE_PX, STEPS = 256, 30
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


def start_webui(folder: Path, gbps: float | None) -> Any:
    import torch
    from real_webui import RealWebui

    if gbps:
        scripts = folder / "extensions" / "slow-bus" / "scripts"
        scripts.mkdir(parents=True)
        (scripts / "slow_bus.py").write_text(SLOW_BUS.format(gbps=gbps))
    env = {} if torch.cuda.is_available() else {"ASYNC_LOWVRAM_BACKEND": "cpu"}
    return RealWebui(folder, ("--lowvram",), extension=True, env=env, page=True)


def replay(visit: Any, recorded: dict[str, Any]) -> None:
    for name, answer in recorded.items():
        body = json.dumps(answer)
        visit.page.route(f"**/async-lowvram/{name}", lambda route, body=body: route.fulfill(json=json.loads(body)))


class Photographer:
    def __init__(self, browser: Any, url: str, out: Path, recorded: dict[str, Any]) -> None:
        self.browser, self.url, self.out, self.recorded = browser, url, out, recorded

    def visit(self, theme: str, width: int, size_mb: int) -> Any:
        from visit import Visit

        one = Visit(self.browser, self.url, theme=theme, width=width)
        if self.recorded:
            replay(one, self.recorded)
        one.rest(2500)
        one.enable()
        one.size().fill(str(size_mb))
        one.size().blur()
        return one

    def generate(self, size_mb: int) -> None:
        one = self.visit("dark", 1280, size_mb)
        for name, value in (("width", SIZE_PX), ("height", SIZE_PX), ("steps", STEPS)):
            field = one.page.locator(f"#txt2img_{name} input[type=number]")
            field.fill(str(value))
            field.blur()
        one.page.locator("#txt2img_prompt textarea").fill("a cat")
        one.page.locator("#txt2img_generate").click()
        one.part("curve").wait_for(state="visible", timeout=120_000)
        one.close()

    def accordion(self, name: str, theme: str, width: int, size_mb: int) -> None:
        one = self.visit(theme, width, size_mb)
        one.part("curve").wait_for(state="visible")
        one.rest(1500)
        one.accordion().screenshot(path=self.out / f"{name}.png")
        one.close()

    def page(self, name: str, theme: str, size_mb: int) -> None:
        one = self.visit(theme, 1280, size_mb)
        one.part("curve").wait_for(state="visible")
        one.rest(1500)
        one.page.screenshot(path=self.out / f"{name}.png")
        one.close()

    def settings(self, name: str) -> None:
        one = self.visit("light", 1280, 0)
        one.page.locator("#tabs > .tab-nav button", has_text="Settings").click()
        one.page.locator("#settings .tab-nav button", has_text="Async lowvram").click()
        one.rest(800)
        one.page.locator("#settings_async_lowvram").screenshot(path=self.out / f"{name}.png")
        one.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", nargs=2, metavar=("URL", "FILE"))
    parser.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--bus-gbps", type=float)
    parser.add_argument("--buffer-mb", type=int, default=16)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    given = parser.parse_args()
    if given.record:
        record(given.record[0], Path(given.record[1]))
        return
    from chromium import FLAGS, chromium
    from playwright.sync_api import sync_playwright

    given.out.mkdir(parents=True, exist_ok=True)
    webui = start_webui(Path(tempfile.mkdtemp()), given.bus_gbps)
    recorded = json.loads(given.replay.read_text()) if given.replay else {}
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
            camera = Photographer(browser, webui.url, given.out, recorded)
            if not recorded:
                camera.generate(given.buffer_mb)
            camera.accordion("accordion-light", "light", 1280, given.buffer_mb)
            camera.accordion("accordion-dark", "dark", 1280, given.buffer_mb)
            camera.accordion("accordion-narrow", "light", 400, given.buffer_mb)
            camera.page("page", "dark", given.buffer_mb)
            camera.settings("settings")
            browser.close()
    finally:
        webui.stop()


if __name__ == "__main__":
    main()
