"""Tables of the benchmark in a real webui: what users get, small cards, RAM. Rows are those of `bench.webui.runner`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib_async_mover.bench.table import number, table

Row = dict[str, Any]
# key, heading, digits, unit
IMAGES = (
    ("ms_per_step", "ms a step", 1, ""), ("first_s", "first image", 2, " s"), ("image_s", "later images", 2, " s"),
    ("peak_mib", "peak VRAM", 0, " MiB"), ("rss_mib", "RAM", 0, " MiB"),
)  # fmt: skip
MORE_OF_IMAGES = (
    ("reserved_mib", "reserved VRAM", 0, " MiB"), ("peak_rss_mib", "peak RAM", 0, " MiB"),
    ("pinned_mib", "page-locked", 0, " MiB"), ("load_s", "model loaded in", 1, " s"), ("oom_retries", "retries", 0, ""),
)  # fmt: skip
RAM = (
    ("peak_loading_mib", "peak while loading", 0, " MiB"), ("rss_loaded_mib", "loaded", 0, " MiB"),
    ("rss_first_mib", "one image", 0, " MiB"), ("rss_images_mib", "ten images", 0, " MiB"),
    ("rss_switches_mib", "three switches", 0, " MiB"), ("peak_rss_mib", "peak", 0, " MiB"),
    ("pinned_mib", "page-locked", 0, " MiB"),
)  # fmt: skip
STARTED_WITH, PIXELS = "webui started with", "pixels (SHA-256)"


def of_webui(run: Sequence[Row]) -> bool:
    """Whether these rows are for this module."""
    return bool(run) and "kind" in run[0]


def format_webui(run: Sequence[Row], short: bool = False) -> str:
    """Markdown: a run's table, under a line that says what was measured on what; `short` for the README."""
    kind = run[0]["kind"]
    if kind == "cards":
        body = _cards_short(run) if short else _cards(run)
    elif kind == "ram":
        body = _table(run, RAM, [])
    else:
        body = _table(run, IMAGES if short else IMAGES + MORE_OF_IMAGES, [PIXELS])
    return f"{_about(run)}\n\n{body}"


def _about(run: Sequence[Row]) -> str:
    """What all rows share."""
    def shared(key: str) -> Any:
        return next((row[key] for row in run if row.get(key)), None)

    size, bus, kind = shared("size"), shared("bus_gbps"), run[0]["kind"]
    what = {"cards": "small cards", "ram": "RAM"}.get(kind, f"{size} × {size}, {shared('steps')} steps")
    subject = f"{shared('model') or 'its own model'} in the webui"
    about = [f"**{', '.join(filter(None, (subject, what, shared('extras'))))}**"]
    about.append(f"{shared('gpu')}, torch {shared('torch')}" if shared("gpu") else "nothing was measured")
    measured = shared("h2d_gbps")
    about.append(f"bus slowed to {bus:g} GB/s" if bus else f"bus {measured:.1f} GB/s" if measured else "")
    if kind == "cards":
        about.append("cards emulated by a limit on the process's VRAM")
    return "; ".join(filter(None, about)) + "."


def _name(row: Row) -> str:
    card = f" on {row['vram_gb']:g} GB" if row["vram_gb"] and row["kind"] != "cards" else ""
    note = f" ({row['note']})" if row.get("note") else ""
    return f"`{row['name']}`{card}{note}"


def _table(run: Sequence[Row], columns: Sequence[tuple[str, str, int, str]], last: Sequence[str]) -> str:
    lines = []
    for row in run:
        cells = [number(row.get(key), digits, unit) for key, _, digits, unit in columns]
        lines.append([_name(row), *cells, *(_pixels(row) for _ in last)])
        if row["error"]:
            lines[-1][-1] = _failed(row)
    return table([STARTED_WITH, *(column[1] for column in columns), *last], lines)


def _pixels(row: Row) -> str:
    return f"`{row['pixels_sha256'][:12]}`" if row.get("pixels_sha256") else ""


def _failed(row: Row) -> str:
    words = " ".join(row["error"].split()).replace("|", "/")
    return f"failed: {words.removeprefix('the webui did not start: ')[:70]}"


def _cards(run: Sequence[Row]) -> str:
    lines = [
        [_name(row), f"{row['vram_gb']:g} GB", _side(row), number(row.get("largest_batch"), 0),
         number(row.get("ms_per_step"), 0), number(row.get("oom_retries"), 0), same_pixels(row, run)]
        for row in sorted(run, key=lambda row: row["vram_gb"])
    ]  # fmt: skip
    size = run[0]["size"]
    headings = ("card", "largest image", f"images at once, {size} px", "ms a step at the largest", "retries")
    return table((STARTED_WITH, *headings, "pixels"), lines)


def _cards_short(run: Sequence[Row]) -> str:
    cards = sorted({row["vram_gb"] for row in run})
    cells = {(row["name"], row["vram_gb"]): _side(row) + _at_once(row) for row in run}
    names = dict.fromkeys(row["name"] for row in run)
    lines = [[f"`{name}`", *(cells.get((name, card), "") for card in cards)] for name in names]
    return table((STARTED_WITH, *(f"{card:g} GB" for card in cards)), lines)


def _side(row: Row) -> str:
    if row.get("largest_px") is None:
        return "not measured"
    return f"{row['largest_px']}²" if row["largest_px"] else "none"


def _at_once(row: Row) -> str:
    return f", {row['largest_batch']} at once" if row.get("largest_batch") else ""


def same_pixels(row: Row, run: Sequence[Row]) -> str:
    """Whether all that was tried came out as in the first row that made the same; the largest card comes first."""
    if row["error"]:
        return _failed(row)
    expected: dict[str, str] = {}
    for other in run:
        if other is row:
            break
        expected = other.get("pixels", {}) | expected
    compared = [what for what in row["pixels"] if what in expected]
    different = [what for what in compared if row["pixels"][what] != expected[what]]
    if different:
        return f"**other at {', '.join(different)}**"
    return f"same in {len(compared)}" if compared else "nothing to compare"
