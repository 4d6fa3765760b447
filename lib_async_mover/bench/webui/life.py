"""The RAM of one configuration over a life: loading, images, switches between two checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.webui.images import Camera

IMAGES, SWITCHES = 10, 3


def live(camera: Camera, row: dict[str, Any], advance: Callable[[int], object]) -> None:
    """Fill in `row`: RSS in MiB at each point, seconds of the first image of all and after each switch.

    A switch counts with the image after it: what a model takes shows once it is used. Raises BenchError for a failure.
    """

    def note(name: str) -> None:
        facts = camera.webui.facts()
        row.update({name: facts["rss_mib"], "peak_rss_mib": facts["peak_rss_mib"], "pinned_mib": facts["pinned_mib"]})

    note("rss_loaded_mib")
    row["peak_loading_mib"] = row["peak_rss_mib"]
    for number in range(1, IMAGES + 1):
        image = camera.make(camera.options.steps)
        if number == 1:
            row.update(first_s=image.seconds, pixels_sha256=image.sha256)
            note("rss_first_mib")
        advance(1)
    note("rss_images_mib")
    titles = [one["title"] for one in camera.webui.call("/sdapi/v1/sd-models")]
    current = camera.webui.call("/sdapi/v1/options")["sd_model_checkpoint"]
    other = next((title for title in titles if title.startswith("other.")), None)
    if other is None:
        raise BenchError(f"the webui does not list the other checkpoint among {titles}: is --ckpt-dir given behind --?")
    row["after_switch_s"] = []
    for number in range(SWITCHES):
        title = current if number % 2 else other
        camera.webui.call("/sdapi/v1/options", {"sd_model_checkpoint": title}, camera.clock.left_s(900))
        row["after_switch_s"].append(camera.make(camera.options.steps).seconds)
        advance(1)
    note("rss_switches_mib")
