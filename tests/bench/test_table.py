"""What a run prints."""

from __future__ import annotations

import dataclasses
import json

import pytest

from lib_async_mover.bench.row import Row, row_of, save_rows
from lib_async_mover.bench.table import format_rows, headline, succeeded, table


def row(mover, budget=None, ms=None, **more):
    given = {
        "mover": mover, "model": "sd15", "batch": 2, "size": 512, "dtype": "float16", "steps": 10, "seed": 0,
        "weights_mib": 1639.4, "torch": "2.11", "gpu": "GPU", "budget": budget, "ms_per_step": ms, "exact": True,
        "resident_ms": 30.0, "h2d_gbps": 55.4, **more,
    }  # fmt: skip
    return Row(**given)


@pytest.fixture
def rows():
    return [
        row("resident", ms=30.0, peak_weights_mib=1640.0),
        row("async", "100%", 30.5, budget_mb=1657.0, stall_share=0.0),
        row("stock", ms=400.0, peak_weights_mib=115.0),
        row("async", "128", 40.0, budget_mb=128.0, limit_ms=36.0, predicted_ms=39.0, stall_share=0.21),
        row("async", "256", 36.0, budget_mb=256.0),
        row("async", "50%", 31.0, budget_mb=819.7),
    ]


def test_a_table_is_markdown_in_columns():
    assert table(["a", "long"], [["bb", "1"], ["c", "22222"]]).splitlines() == [
        "| a    |  long |", "| ---- | ----: |", "| bb   |     1 |", "| c    | 22222 |",
    ]  # fmt: skip


def test_rows_have_a_line_each_under_what_they_share(rows):
    rows[5].error = "ArenaAllocationError: " + 100 * "no "
    about, _, *lines = format_rows(rows).splitlines()
    assert about == (
        "**sd15, 512 × 512, 2 images a forward, float16**; GPU, torch 2.11; 1639 MiB of weights; bus 55.4 GB/s."
    )
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[5] == ["async lowvram", "128 MB", "40.0", "25.00", "1.33", "36.0", "39.0", "", "yes"]
    assert cells[4] == ["stock `--lowvram`", "", "400.0", "2.50", "13.33", "", "", "115 MiB", "yes"]
    assert cells[7][-1].startswith("not measured: ArenaAllocationError: no no")
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) < 260


def test_a_played_bus_is_told():
    assert "; bus slowed to 6.0 GB/s." in format_rows([row("async", ms=1.0, bus_gbps=6.0)])


def test_headline_takes_the_smallest_budget_that_costs_little(rows):
    assert headline(rows) == (
        "sd15 on GPU: with 256 of 1639 MiB of weights on the device, a step takes 36.0 ms, 1.20 x everything "
        "resident, 11.1 x faster than stock lowvram; every output is bit-identical."
    )


def test_headline_takes_the_fastest_where_all_cost_much(rows):
    for one in rows:
        one.resident_ms = 10.0
    assert "with 820 of" in headline(rows)


def test_headline_does_not_claim_what_was_not_compared(rows):
    rows = [dataclasses.replace(one, exact=None, resident_ms=None) for one in rows]
    assert "bit-identical" not in headline(rows)
    assert "resident" not in headline(rows)
    assert headline(rows[:2]).startswith("Nothing to conclude")


def test_success(rows):
    assert succeeded(rows)
    assert not succeeded([*rows, row("async", "1", exact=False)])
    assert not succeeded([*rows, row("async", "1", error="no")])


def test_saved_rows(rows, tmp_path):
    save_rows(rows, tmp_path / "rows.json")
    saved = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [row_of(one | {"of another version": 1}) for one in saved] == rows
