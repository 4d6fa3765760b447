"""Images through the webui's API: what is asked for, how long it took, and the hash of its pixels."""

from __future__ import annotations

import base64
import struct
import time
import zlib
from dataclasses import dataclass
from typing import Any

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.webui.options import Configuration, Options
from lib_async_mover.bench.webui.server import Webui

FEWER = 4  # the short images have this many times fewer steps
DIFFERS = "the same request gave other pixels"


class Clock:
    """The time that is left of `limit_s` seconds, counted from now; None is no limit."""

    def __init__(self, limit_s: float | None) -> None:
        self._end_s = None if limit_s is None else time.monotonic() + limit_s

    def left_s(self, most_s: float) -> float:
        """At most `most_s`. Raises BenchError when all is spent."""
        left = most_s if self._end_s is None else self._end_s - time.monotonic()
        if left <= 0:
            raise BenchError("stopped by --limit-s")
        return min(left, most_s)


@dataclass(frozen=True)
class Image:
    """Or a batch of them: the seconds of the request, and the SHA-256 of their RGB bytes, one after another."""

    seconds: float
    sha256: str


class Camera:
    """Makes images in one running webui. `size_px` is the model's own unless another was asked for."""

    def __init__(self, webui: Webui, options: Options, configuration: Configuration, clock: Clock) -> None:
        self.webui, self.options, self.configuration, self.clock = webui, options, configuration, clock
        self.size_px = options.size_px or int(webui.facts()["own_px"])

    def make(self, steps: int, size_px: int | None = None, batch: int | None = None) -> Image:
        """Raises BenchError with the webui's words where it makes none, and when time is up."""
        body = request(self.options, self.configuration, steps, size_px or self.size_px, batch or self.options.batch)
        limit_s, before_s = self.clock.left_s(900), time.perf_counter()
        self.webui.call("/sdapi/v1/txt2img", body, limit_s)
        seconds, facts = time.perf_counter() - before_s, self.webui.facts()
        if facts["blank"]:
            raise BenchError("the image is one colour: this model and its precision do not go together, see its log")
        return Image(seconds, facts["pixels_sha256"])


def request(options: Options, configuration: Configuration, steps: int, size_px: int, batch: int) -> dict[str, Any]:
    """The body of a txt2img."""
    scripts: dict[str, Any] = {}
    body: dict[str, Any] = {
        "prompt": "a cat in a red hat, on a wall" + (f" <lora:{options.lora.stem}:1>" if options.lora else ""),
        "negative_prompt": "a dog", "seed": options.seed, "steps": steps, "cfg_scale": 7, "sampler_name": "Euler",
        "width": size_px, "height": size_px, "batch_size": batch, "send_images": False, "alwayson_scripts": scripts,
        # A preview would load another model in the middle, or even download it.
        "override_settings": {"show_progress_type": "Approx cheap", "live_previews_enable": False},
    }  # fmt: skip
    if options.hires:
        body |= {"enable_hr": True, "hr_scale": options.hires, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    if configuration.buffer_mb is not None:
        scripts["async lowvram"] = {"args": [True, configuration.buffer_mb]}
    if options.controlnet:
        unit = {"enabled": True, "module": "none", "model": options.controlnet.stem, "image": ramp_png(size_px)}
        scripts["controlnet"] = {"args": [unit | {"low_vram": options.controlnet_lowvram}]}
    return body


def ramp_png(size_px: int) -> str:
    """A grey ramp, square: PNG in base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes([y % 256]) * (3 * size_px) for y in range(size_px))
    header = struct.pack(">IIBBBBB", size_px, size_px, 8, 2, 0, 0, 0)  # 8 bits of each of 3 colours
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(png).decode()
