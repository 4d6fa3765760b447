"""Puts measured tables into the documents: no figure in them is typed by hand.

    python -m lib_async_mover.bench.report docs/measured/*.json

Each file is what `python -m lib_async_mover bench --json FILE` wrote, or images timed in the webui: a list of objects
with name, model, gpu, torch, size, steps, ms_per_step, image_s, peak_mib and pixels_sha256. In README.md and
docs/performance.md everything between the two markers is written anew.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..plan import make_plan
from ..workload import MIB
from .planning import load_workload

PROFILE = Path("tests/profiles/profile_sd15_b2_512.json")
LAPTOP_MS, LAPTOP_GBPS, LAPTOP_BUDGETS_MB = 172.0, 12.0, (128, 256, 512, 768)

logger = logging.getLogger("async_lowvram")

BEGIN = "<!-- measured: written by python -m lib_async_mover.bench.report -->"
END = "<!-- /measured -->"
DOCUMENTS = ("README.md", "docs/performance.md")
NAMES = {"resident": "everything on the GPU", "stock": "stock `--lowvram`", "async": "async lowvram"}
HEADINGS = (
    "mover", "buffer", "ms a step", "it/s", "× all on the GPU", "least possible ms", "predicted ms", "VRAM for weights",
    "same to the last bit",
)  # fmt: skip
WEBUI_HEADINGS = ("webui started with", "ms a step", "s an image", "peak VRAM", "pixels (SHA-256)")


def tables(runs: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Markdown: one table for each run, under a line that says what was measured on what."""
    measured = [rows for rows in runs if any(row.get("ms_per_step") for row in rows)]
    parts = [webui_table(rows) if "pixels_sha256" in rows[0] else table(rows) for rows in measured]
    return "\n\n".join(parts) if parts else "Nothing has been measured yet."


def laptop_table(profile: Path) -> str:
    """What the planner predicts for a laptop, from a profile recorded on a large card."""
    workload = load_workload(profile)
    laptop = workload.scaled(LAPTOP_MS / workload.compute_ms, LAPTOP_GBPS)
    lines = [
        "**SD1.5 on an RTX 3060 Laptop**, *predicted* from times measured on another card, slowed down to "
        f"{LAPTOP_MS:.0f} ms a step with everything on the GPU, and a bus of {LAPTOP_GBPS:.0f} GB/s.",
        "",
        _line(("buffer", "ms a step", "× all on the GPU")),
        _line(("---:", "---:", "---:")),
    ]
    for budget_mb in LAPTOP_BUDGETS_MB:
        step_ms = make_plan(laptop, budget_mb * MIB).predicted_ms
        lines.append(_line((f"{budget_mb} MB", _number(step_ms, 0), _number(step_ms / laptop.resident_ms, 2))))
    return "\n".join(lines)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One run. Rows without a measurement say why."""
    first = rows[0]
    bus = next((row["bus_gbps"] for row in rows if row.get("bus_gbps")), None)
    measured_bus = next((row["h2d_gbps"] for row in rows if row.get("h2d_gbps")), None)
    where = [
        f"**{first['model']}, {first['size']} × {first['size']}, {first['batch']} images a forward, {first['dtype']}**",
        f"{first['gpu']}, torch {first['torch']}",
        f"{first['weights_mib']:.0f} MiB of weights",
    ]
    if bus:
        where.append(f"bus slowed to {bus:.1f} GB/s")
    elif measured_bus:
        where.append(f"bus {measured_bus:.1f} GB/s")
    lines = ["; ".join(where) + ".", "", _line(HEADINGS), _line(["---", *["---:"] * (len(HEADINGS) - 1)])]
    lines += [_line(_cells(row)) for row in rows]
    return "\n".join(lines)


def webui_table(rows: Sequence[dict[str, Any]]) -> str:
    """Images made in the webui, once per way to start it."""
    first = rows[0]
    where = f"**{first['model']} in the webui, {first['size']} × {first['size']}, {first['steps']} steps**"
    lines = [f"{where}; {first['gpu']}, torch {first['torch']}.", "", _line(WEBUI_HEADINGS)]
    lines.append(_line(["---", *["---:"] * (len(WEBUI_HEADINGS) - 1)]))
    for row in rows:
        numbers = [_number(row["ms_per_step"], 1), _number(row["image_s"], 2), _number(row["peak_mib"], 0, " MiB")]
        lines.append(_line([f"`{row['name']}`", *numbers, f"`{row['pixels_sha256'][:12]}`"]))
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    size = row.get("budget_mb")
    name = NAMES.get(row["mover"], row["mover"])
    if row["mover"] == "async" and row.get("budget") == "auto":
        name += " (auto)"
    if row.get("error") or not row.get("ms_per_step"):
        empty = [""] * (len(HEADINGS) - 3)
        return [name, _number(size, 0, " MB"), f"not measured: {row.get('error') or 'no time'}", *empty]
    exact = {True: "yes", False: "**no**"}.get(row.get("exact"), "")  # type: ignore[arg-type]
    step_ms = row["ms_per_step"]
    times = step_ms / row["resident_ms"] if row.get("resident_ms") else None
    return [
        name, _number(size, 0, " MB"), _number(step_ms, 1), _number(1e3 / step_ms, 2), _number(times, 2),
        _number(row.get("limit_ms"), 1), _number(row.get("predicted_ms"), 1),
        _number(row.get("peak_weights_mib"), 0, " MiB"), exact,
    ]  # fmt: skip


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return "" if value is None else f"{value:.{digits}f}{unit}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def rewrite(text: str, content: str) -> str:
    """`text` with what is between the markers replaced. Raises ValueError where they are not there once each."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected one {BEGIN} and, below it, one {END}")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n\n{content}\n\n{END}{tail}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m lib_async_mover.bench.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="rows written by bench --json")
    parser.add_argument("--into", nargs="*", type=Path, help=f"documents to rewrite ({', '.join(DOCUMENTS)})")
    given = parser.parse_args(arguments)
    content = tables([json.loads(path.read_text(encoding="utf-8")) for path in given.files])
    content += "\n\n" + laptop_table(PROFILE)
    documents = given.into if given.into is not None else [Path(name) for name in DOCUMENTS if Path(name).is_file()]
    for path in documents:
        try:
            path.write_text(rewrite(path.read_text(encoding="utf-8"), content), encoding="utf-8")
        except ValueError as error:
            logger.error("%s is left as it is: %s", path, error)
            return 1
        logger.info("%s: %d tables", path, len(given.files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
