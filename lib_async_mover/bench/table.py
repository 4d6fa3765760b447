"""A run's rows as a table, and what they show in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from lib_async_mover.bench.row import Row

NAMES = {"resident": "everything on the GPU", "stock": "stock `--lowvram`", "async": "async lowvram"}
HEADINGS = (
    "mover", "buffer", "ms a step", "it/s", "× all on the GPU", "least possible ms", "predicted ms", "VRAM for weights",
    "same to the last bit",
)  # fmt: skip


def format_rows(rows: Sequence[Row]) -> str:
    """One run: what all its rows share (the forward, the machine, the weights, the bus), and a line for each."""
    first = rows[0]
    played = next((row.bus_gbps for row in rows if row.bus_gbps), None)
    measured = next((row.h2d_gbps for row in rows if row.h2d_gbps), None)
    about = [
        f"**{first.model}{' with a ControlNet' if first.guests else ''}, {first.size} × {first.size}, "
        f"{first.batch} images a forward, {first.dtype}**",
        f"{first.gpu}, torch {first.torch}",
        f"{first.weights_mib:.0f} MiB of weights",
    ]
    if played or measured:
        about.append(f"bus slowed to {played:.1f} GB/s" if played else f"bus {measured:.1f} GB/s")
    return f"{'; '.join(about)}.\n\n{table(HEADINGS, [_cells(row) for row in rows])}"


def _cells(row: Row) -> list[str]:
    exact = {True: "yes", False: "**no**", None: ""}[row.exact]
    if row.error or not row.ms_per_step:
        exact = f"not measured: {(row.error or 'no time')[:70]}"
    return [
        NAMES[row.mover] + (" (auto)" if row.budget == "auto" else ""), number(row.budget_mb, 0, " MB"),
        number(row.ms_per_step, 1), number(1e3 / row.ms_per_step if row.ms_per_step else None, 2),
        number(row.times_resident, 2), number(row.limit_ms, 1), number(row.predicted_ms, 1),
        number(row.peak_weights_mib, 0, " MiB"), exact,
    ]  # fmt: skip


def number(value: float | None, digits: int, unit: str = "") -> str:
    """The number, or nothing where there is none."""
    return "" if value is None else f"{value:.{digits}f}{unit}"


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown that a terminal shows in columns too: the first to the left, the others to the right."""
    widths = [max(4, *map(len, column)) for column in zip(headings, *lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in (headings, rule, *lines)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def succeeded(rows: Sequence[Row]) -> bool:
    """Whether every row was measured and none differs from the resident outputs."""
    return all(row.error is None and row.exact is not False for row in rows)


def headline(rows: Sequence[Row]) -> str:
    """What the run shows, in one line: the smallest budget that costs at most a quarter, or else the fastest."""
    budgets = [row for row in rows if row.mover == "async" and row.ms_per_step and row.budget != "100%"]
    if not budgets:
        return "Nothing to conclude: no budget below all of the weights was measured."
    good = [row for row in budgets if row.times_resident and row.times_resident <= 1.25]
    best = min(good or budgets, key=lambda row: (row.budget_mb if good else row.ms_per_step) or 0.0)
    text = (
        f"{best.model} on {best.gpu}: with {best.budget_mb or 0:.0f} of {best.weights_mib:.0f} MiB of weights on the "
        f"device, a step takes {best.ms_per_step:.1f} ms"
    )
    if best.times_resident:
        text += f", {best.times_resident:.2f} x everything resident"
    stock_ms = next((row.ms_per_step for row in rows if row.mover == "stock"), None)
    if stock_ms and best.ms_per_step:
        text += f", {stock_ms / best.ms_per_step:.1f} x faster than stock lowvram"
    if not succeeded(rows):
        return text + "; BUT NOT EVERY ROW IS EXACT, see the table."
    return text + ("; every output is bit-identical." if all(row.exact for row in rows) else ".")
