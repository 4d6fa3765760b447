"""One run: every configuration in turn, a row for each, kept in a file after every row.

A row is plain values; what was not measured is missing or None. All have name, model, size (px), steps, batch, extras,
vram_gb, bus_gbps, and gpu, torch, load_s (of the model), startup_s (of the webui) once it runs, and error. Then, MiB:

- what users get: first_s, image_s (later ones), ms_per_step, peak_mib and reserved_mib (VRAM), rss_mib, peak_rss_mib,
  pinned_mib (page-locked RAM), oom_retries, h2d_gbps (bus), pixels_sha256, note
- small cards, one row each: largest_px, largest_batch, ms_per_step and pixels_sha256 at the largest image, oom_retries,
  pixels and failures of all that was tried, by "512" (px) or "×4" (images of the model's own size)
- RAM: peak_loading_mib, and RSS as rss_loaded_mib, rss_first_mib (after the first image), rss_images_mib (after ten),
  rss_switches_mib (after three switches), peak_rss_mib; pinned_mib, first_s, after_switch_s
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.progress import progress
from lib_async_mover.bench.webui.cards import Cards
from lib_async_mover.bench.webui.images import Camera, Clock
from lib_async_mover.bench.webui.life import IMAGES, SWITCHES, live
from lib_async_mover.bench.webui.options import Configuration, Options
from lib_async_mover.bench.webui.server import Webui, interpreter, running
from lib_async_mover.bench.webui.users import images_of, measure_images

START_LIMIT_S = 600.0

logger = logging.getLogger("async_lowvram")
Row = dict[str, Any]


class WebuiRunner:
    """One use: make it, call `run`, read `rows`. Raises BenchError where nothing can be measured at all."""

    def __init__(self, options: Options) -> None:
        if options.small_cards and not options.vram_gb:
            raise BenchError("--small-cards plays cards: name their sizes, as --vram-gb 2,3,4,6,8")
        interpreter(options)
        self.options = options
        self.rows: list[Row] = []
        self._clock = Clock(options.limit_s)
        self._answers: dict[tuple[float, str], int] = {}

    def run(self) -> list[Row]:
        """All rows; one that failed has its error, and the run goes on with the next."""
        with _folder(self.options.data_dir) as folder:
            for number, configuration in enumerate(self.options.configurations()):
                self._run(configuration, folder / f"{number}")
        return self.rows

    def _run(self, configuration: Configuration, folder: Path) -> None:
        options = self.options
        cards = sorted(options.vram_gb, reverse=True) if options.small_cards else [configuration.vram_gb]
        rows = [self._new_row(configuration, card) for card in cards]
        counted = len(cards) if options.small_cards else images_of(options.rounds)
        counted = IMAGES + SWITCHES if options.ram else counted
        with progress(configuration.name, counted, "card" if options.small_cards else "image") as advance:
            try:
                with running(options, configuration, folder, self._clock.left_s(START_LIMIT_S)) as webui:
                    self._measure(Camera(webui, options, configuration, self._clock), rows, advance)
            except (BenchError, OSError) as error:
                for row in rows:
                    if "done" not in row:
                        row["error"] = str(error)
                        logger.info("%s: %s", row["name"], error)
        for row in rows:
            row.pop("done", None)
            self._keep(row)

    def _measure(self, camera: Camera, rows: list[Row], advance: Callable[[int], object]) -> None:
        options = self.options
        for row in rows:
            row.update(_of_start(camera.webui), size=camera.size_px)
        if not options.small_cards:
            (live if options.ram else measure_images)(camera, rows[0], advance)
            return
        cards = Cards(camera, self._answers)
        for row in rows:
            cards.measure(row["vram_gb"], row)
            row["done"] = True
            self._keep(row)
            logger.info(
                "%s, %g GB: %d px, batch %d", row["name"], row["vram_gb"], row["largest_px"], row["largest_batch"]
            )
            advance(1)

    def _new_row(self, configuration: Configuration, vram_gb: float | None) -> Row:
        options, ours = self.options, configuration.extension is not None
        row: Row = {
            "name": configuration.name, "kind": options.kind, "model": options.model, "size": options.size_px,
            "steps": options.steps, "batch": options.batch, "seed": options.seed, "extras": options.extras,
            "vram_gb": vram_gb, "bus_gbps": options.bus_gbps if ours else None, "error": None,
        }  # fmt: skip
        if options.bus_gbps and not ours:
            row["note"] = "its bus is not slowed"
        return row

    def _keep(self, row: Row) -> None:
        if not any(row is kept for kept in self.rows):
            self.rows.append(row)
        if self.options.json_path is not None:
            kept = [{key: value for key, value in one.items() if key != "done"} for one in self.rows]
            self.options.json_path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _of_start(webui: Webui) -> Row:
    facts = webui.facts()
    return {
        "gpu": facts["gpu"], "torch": facts["torch"],
        "load_s": webui.logged_s("Model loaded in"), "startup_s": webui.logged_s("Startup time:"),
    }  # fmt: skip


@contextmanager
def _folder(named: Path | None) -> Iterator[Path]:
    """An empty one for data. Raises BenchError where the one that was named is not."""
    if named is None:
        with tempfile.TemporaryDirectory(prefix="async-lowvram-bench-", ignore_cleanup_errors=True) as made:
            yield Path(made)
        return
    named.mkdir(parents=True, exist_ok=True)
    if any(named.iterdir()):
        raise BenchError(f"{named} is not empty: name another --data-dir")
    yield named.resolve()
