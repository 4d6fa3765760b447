"""A run's rows as a table for the terminal, and what they show in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from .row import Row

_HEADINGS = (
    "mover", "budget MB", "ms/step", "it/s", "x resident", "weights MiB", "exact", "bound ms", "limit ms",
    "predicted", "waiting",
)  # fmt: skip


def format_grid(headings: Sequence[str], lines: Sequence[Sequence[str]], bar: bool = False) -> str:
    """Columns as wide as their widest cell, the first to the left and the others to the right.

    With `bar` the last column is to the left too.
    """
    left = {0, len(headings) - 1} if bar else {0}
    grid = [list(headings), *[list(line) for line in lines]]
    widths = [max(len(line[column]) for line in grid) for column in range(len(headings))]
    grid.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width) for column, (cell, width) in enumerate(cells)
        ).rstrip()
        for cells in ([*zip(line, widths, strict=True)] for line in grid)
    )


def format_rows(rows: Sequence[Row]) -> str:
    """The table of one run, under a line that says what all rows share."""
    first = rows[0]
    measured = next((row for row in rows if row.mover == "async" and row.h2d_gbps), first)
    parts = [
        f"{first.model} {first.size} x {first.size}, batch {first.batch}, {first.dtype}",
        f"weights {first.weights_mib:.0f} MiB",
        f"{first.gpu}, torch {first.torch}",
    ]
    if measured.h2d_gbps:
        parts.append(f"host to device {measured.h2d_gbps:.1f} GB/s")
    if measured.bus_gbps:
        parts.append(f"slowed to {measured.bus_gbps:.2f} GB/s for async and stock")
    lines = [_cells(row) for row in rows]
    failures = [f"{row.mover} {row.budget or ''}: {row.error}" for row in rows if row.error]
    return "\n".join(["; ".join(parts), "", format_grid(_HEADINGS, lines), *failures])


def _cells(row: Row) -> list[str]:
    exact = {True: "yes", False: "NO", None: "-"}[row.exact]
    if row.error:
        exact = "failed"
    budget = "-" if row.budget is None else row.budget
    if row.budget_mb is not None and not (row.budget or "").replace(".", "").isdigit():
        budget = f"{row.budget} = {row.budget_mb:.0f}"
    return [
        row.mover,
        budget,
        _number(row.ms_per_step, 1),
        _number(None if not row.ms_per_step else 1e3 / row.ms_per_step, 2),
        _number(row.times_resident, 2),
        _number(row.peak_weights_mib, 0),
        exact,
        _number(row.bound_ms, 1),
        _number(row.limit_ms, 1),
        _number(row.predicted_ms, 1),
        "-" if row.stall_share is None else f"{row.stall_share:.0%}",
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def succeeded(rows: Sequence[Row]) -> bool:
    """Whether every row was measured and none differs from the resident outputs."""
    return all(row.error is None and row.exact is not False for row in rows)


def headline(rows: Sequence[Row]) -> str:
    """What the run shows, in one line: the smallest budget that costs at most a quarter, or else the fastest."""
    budgets = [row for row in rows if row.mover == "async" and row.ms_per_step and row.budget != "100%"]
    if not budgets:
        return "Nothing to conclude: no budget below all of the weights was measured."
    fastest = min(budgets, key=lambda row: row.ms_per_step or 0.0)
    good = [row for row in budgets if (row.times_resident or 9.9) <= 1.25]
    best = min(good, key=lambda row: row.budget_mb or 0.0) if good else fastest
    text = (
        f"{best.model} on {best.gpu}: with {best.budget_mb or 0:.0f} of {best.weights_mib:.0f} MiB of weights on the "
        f"device, a step takes {best.ms_per_step:.1f} ms"
    )
    if best.times_resident:
        text += f", {best.times_resident:.2f} x everything resident"
    stock = next((row for row in rows if row.mover == "stock" and row.ms_per_step), None)
    if stock is not None and stock.ms_per_step and best.ms_per_step:
        text += f", {stock.ms_per_step / best.ms_per_step:.1f} x faster than stock lowvram"
    if not succeeded(rows):
        return text + "; BUT NOT EVERY ROW IS EXACT, see the table."
    return text + ("; every output is bit-identical." if all(row.exact for row in rows) else ".")
