"""A page that somebody looks at, and what of the extension is on it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

LOADED_MS = 30_000
SOON_MS = 8_000


class Visit:
    """One tab of the browser. Nothing outside this machine is asked for: gradio's page wants fonts from the web."""

    def __init__(
        self, browser: Any, url: str, *, theme: str = "light", width: int = 1100, login: tuple[str, str] | None = None,
        subpath: str = "", delay_s: float = 0,
    ) -> None:  # fmt: skip
        """With `subpath` there seems to be a proxy in front, which serves everything below that path; with `delay_s`
        the first status is late."""
        self.url = url
        self.subpath = subpath
        self.errors: list[str] = []
        self.polled: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 1300}, color_scheme=theme)
        self.page = self.context.new_page()
        self.page.route("**/*", self._local_only)
        if delay_s:
            late = f"setTimeout(() => resolve(real(...asked)), {1000 * delay_s})"
            script = f"const real = fetch; window.fetch = (...asked) => new Promise((resolve) => {late})"
            self.page.add_init_script(script)
        self.page.on("request", self._count)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        if login:
            form = {"username": login[0], "password": login[1]}
            assert self.context.request.post(f"{url}login", form=form).ok
        self.page.goto(f"{url}{subpath}?__theme={theme}")
        self.loaded()

    def _local_only(self, route: Any) -> None:
        asked = route.request.url
        if urlsplit(asked).hostname != "127.0.0.1":
            route.abort()
        elif self.subpath and asked.startswith(self.url + self.subpath):
            route.fulfill(response=route.fetch(url=asked.replace(self.url + self.subpath, self.url)))
        else:
            route.continue_()

    def _count(self, request: Any) -> None:
        if request.url.endswith("/async-lowvram/status"):
            self.polled.append(request.url)

    @property
    def polls(self) -> int:
        return len(self.polled)

    def loaded(self) -> None:
        self.page.wait_for_selector("#txt2img_generate", timeout=LOADED_MS)

    def reload(self) -> None:
        self.page.reload()
        self.loaded()

    def close(self) -> None:
        self.context.close()

    # --- what is there, in the txt2img tab unless told

    def part(self, name: str, tab: str = "txt2img") -> Any:
        """By its `data-alv` name."""
        return self.accordion(tab).locator(f'[data-alv="{name}"]')

    def accordion(self, tab: str = "txt2img") -> Any:
        return self.page.locator(f"#script_{tab}_async_lowvram_enabled")

    def box(self, tab: str = "txt2img") -> Any:
        return self.page.locator(f"#script_{tab}_async_lowvram_enabled-visible-checkbox")

    def readout(self, tab: str = "txt2img") -> Any:
        return self.part("readout", tab)

    def size(self, tab: str = "txt2img") -> Any:
        return self.page.locator(f"#script_{tab}_async_lowvram_buffer_mb input[type=number]")

    def enable(self) -> None:
        """Tick the box, if it is not: that opens the panel. What was ticked before may be folded."""
        self.says(self.readout(), "")
        if not self.box().is_checked():
            self.box().click()
        elif not self.size().is_visible():
            self.accordion().locator(".label-wrap").click()
        self.size().wait_for(state="visible")

    def unfold(self) -> None:
        """Open the details, with the curve if there is one."""
        self.accordion().locator("summary").click()
        self.part("curve-note").wait_for(state="attached")

    def type_size(self, text: str) -> None:
        """And leave the field."""
        self.size().fill("")
        self.size().press_sequentially(text)
        self.size().blur()

    def generate(self, steps: int = 12) -> str:
        """Returns what the stub made of it."""
        self.page.locator("#txt2img_steps input").fill(str(steps))
        result = self.page.locator("#txt2img_result textarea")
        before = result.input_value()
        self.page.locator("#txt2img_generate").click()
        self.page.wait_for_function(
            "before => document.querySelector('#txt2img_result textarea').value !== before",
            arg=before, timeout=LOADED_MS,
        )  # fmt: skip
        return str(result.input_value())

    # --- waiting

    def until(self, condition: str, argument: Any = None) -> None:
        self.page.wait_for_function(condition, arg=argument, timeout=SOON_MS)

    def has_size(self, size: str, tab: str = "txt2img") -> None:
        """Wait until the slider of `tab` is at `size`."""
        from playwright.sync_api import expect

        expect(self.size(tab)).to_have_value(size, timeout=SOON_MS)

    def says(self, locator: Any, text: str, within_ms: int = SOON_MS) -> str:
        """Wait until it shows `text` among more; without `text`, anything but the words it starts with."""
        from playwright.sync_api import expect

        if text:
            expect(locator).to_contain_text(text, timeout=within_ms)
        else:
            expect(locator).not_to_contain_text("Getting the memory use", timeout=within_ms)
        return str(locator.text_content())

    def rest(self, ms: int) -> None:
        self.page.wait_for_timeout(ms)
