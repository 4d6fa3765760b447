"""What a run prints."""

from __future__ import annotations

import dataclasses
import json

import pytest

from lib_async_mover.bench.row import Row, save_rows
from lib_async_mover.bench.table import format_grid, format_rows, headline, succeeded


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


def test_grid_is_aligned():
    assert format_grid(["a", "long"], [["bb", "1"], ["c", "22222"]]).splitlines() == [
        "a    long", "--  -----", "bb      1", "c   22222",
    ]  # fmt: skip


def test_table(rows):
    lines = format_rows(rows).splitlines()
    assert lines[0] == (
        "sd15 512 x 512, batch 2, float16; weights 1639 MiB; GPU, torch 2.11; host to device 55.4 GB/s"
    )
    small = next(line for line in lines if "128" in line and line.startswith("async"))
    assert small.split() == ["async", "128", "40.0", "25.00", "1.33", "-", "yes", "-", "36.0", "39.0", "21%"]
    assert any("50% = 820" in line for line in lines)
    assert len({len(line) for line in lines[2:]}) == 1


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
    assert saved[3]["budget_mb"] == 128.0 and saved[0]["budget"] is None
