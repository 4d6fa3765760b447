"""Puts measured tables into the documents: no figure in them is typed by hand.

A file is what `bench --json FILE` or `bench.webui --json FILE` wrote, or images timed in the webui before there was the
latter: a list of objects with name, model, gpu, torch, size, steps, ms_per_step, image_s, peak_mib and pixels_sha256.
A document has places, each between two markers; all that is between them is replaced.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.profiles import load_workload
from lib_async_mover.bench.row import row_of
from lib_async_mover.bench.table import format_rows, number, table
from lib_async_mover.bench.webui_tables import format_webui, of_webui
from lib_async_mover.plan.planner import make_plan
from lib_async_mover.plan.workload import MIB

PROFILE = Path("tests/profiles/profile_sd15_b2_512.json")
LAPTOP_MS, LAPTOP_GBPS, LAPTOP_BUDGETS_MB = 172.0, 12.0, (128, 256, 512, 768)
# Places in documents: of the engine alone and of older images; of the benchmark in the webui, whole, and in short
ENGINE, WEBUI, WEBUI_SHORT = "measured", "measured in the webui", "measured in the webui, in short"
DOCUMENTS = (Path("README.md"), Path("docs/performance.md"))
MEASURED = sorted(Path("docs/measured").glob("*.json"))
WEBUI_HEADINGS = ("webui started with", "ms a step", "s an image", "peak VRAM", "pixels (SHA-256)")

logger = logging.getLogger("async_lowvram")


def format_run(data: Sequence[dict[str, Any]]) -> str:
    """Markdown: one run's table, under a line that says what was measured on what."""
    if "pixels_sha256" not in data[0]:
        return format_rows([row_of(one) for one in data])
    first = data[0]
    what = f"**{first['model']} in the webui, {first['size']} × {first['size']}, {first['steps']} steps**"
    lines = [
        [f"`{one['name']}`", number(one["ms_per_step"], 1), number(one["image_s"], 2),
         number(one["peak_mib"], 0, " MiB"), f"`{one['pixels_sha256'][:12]}`"]
        for one in data
    ]  # fmt: skip
    return f"{what}; {first['gpu']}, torch {first['torch']}.\n\n{table(WEBUI_HEADINGS, lines)}"


def laptop_table(profile: Path) -> str:
    """What the planner predicts for a laptop, from a profile recorded on a large card."""
    workload = load_workload(profile)
    laptop = workload.scaled(LAPTOP_MS / workload.compute_ms, LAPTOP_GBPS)
    steps_ms = {budget_mb: make_plan(laptop, budget_mb * MIB).predicted_ms for budget_mb in LAPTOP_BUDGETS_MB}
    lines = [
        [f"{budget_mb} MB", number(step_ms, 0), number(step_ms / laptop.resident_ms, 2)]
        for budget_mb, step_ms in steps_ms.items()
    ]
    return (
        "**SD1.5 on an RTX 3060 Laptop**, *predicted* from times measured on another card, slowed down to "
        f"{LAPTOP_MS:.0f} ms a step with everything on the GPU, and a bus of {LAPTOP_GBPS:.0f} GB/s.\n\n"
        + table(("buffer", "ms a step", "× all on the GPU"), lines)
    )


def markers(place: str) -> tuple[str, str]:
    """Between which a document has this place."""
    return f"<!-- {place}: written by python -m lib_async_mover report -->", f"<!-- /{place} -->"


def rewrite(text: str, content: str, place: str = ENGINE) -> str:
    """`text` with what is between the markers replaced. Raises BenchError where they are not there once each."""
    first, last = markers(place)
    head, begin, rest = text.partition(first)
    old, end, tail = rest.partition(last)
    if not (begin and end) or first in rest or last in head + tail:
        raise BenchError(f"expected one {first} and, below it, one {last}")
    return f"{head}{first}\n\n{content}\n\n{last}{tail}" if content else f"{head}{first}\n{last}{tail}"


def write_report(files: Sequence[Path], into: Sequence[Path], check: bool = False) -> int:
    """Rewrite the documents, or only `check` that nothing in them changes. Returns the exit status.

    Raises BenchError for a document without places, or one that was to be checked and differs.
    """
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    of_webuis = [run for run in runs if of_webui(run)]
    contents = {
        ENGINE: [*(format_run(run) for run in runs if not of_webui(run)), laptop_table(PROFILE)],
        WEBUI: [format_webui(run) for run in of_webuis],
        WEBUI_SHORT: [format_webui(run, short=True) for run in of_webuis],
    }
    for path in into:
        before = after = path.read_text(encoding="utf-8")
        places = [place for place in contents if any(marker in before for marker in markers(place))]
        for place in places or [ENGINE]:
            after = rewrite(after, "\n\n".join(contents[place]), place)
        if check and after != before:
            raise BenchError(f"{path}: its tables are not the measured ones; run `python -m lib_async_mover report`")
        path.write_text(after, encoding="utf-8")
        logger.info("%s: %d tables", path, len(files))
    return 0
