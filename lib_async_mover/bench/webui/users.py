"""What a user gets of one configuration: time of a step and of an image, memory, and the pixels."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from lib_async_mover.bench.webui.images import DIFFERS, FEWER, Camera

LATER = 2  # images after the first where no rounds are asked for
MEMORY = ("peak_mib", "reserved_mib", "rss_mib", "peak_rss_mib", "pinned_mib", "oom_retries", "h2d_gbps")


def images_of(rounds: int) -> int:
    """How many `measure_images` makes."""
    return 1 + (2 * rounds or LATER)


def measure_images(camera: Camera, row: dict[str, Any], advance: Callable[[int], object]) -> None:
    """Fill in `row`, as far as it comes. Raises BenchError where an image fails or time is up."""
    options = camera.options
    few = max(1, options.steps // FEWER)
    first = camera.make(options.steps)
    row.update(first_s=first.seconds, pixels_sha256=first.sha256)
    advance(1)
    later, steps_ms = [], []
    for _ in range(options.rounds or LATER):
        short_s = camera.make(few).seconds if options.rounds else 0.0
        image = camera.make(options.steps)
        later.append(image.seconds)
        row["image_s"] = median(later)
        if options.rounds and options.steps > few:
            steps_ms.append((image.seconds - short_s) * 1e3 / (options.steps - few))
            row["ms_per_step"] = median(steps_ms)
        if image.sha256 != first.sha256:
            row["note"] = DIFFERS
        advance(2 if options.rounds else 1)
    facts = camera.webui.facts()
    row.update({name: facts[name] for name in MEMORY})
