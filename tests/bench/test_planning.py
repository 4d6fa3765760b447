"""`plan`: from a profile to a table, sentences and rows."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from lib_async_mover.bench import cli
from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.planning import plan_for
from lib_async_mover.bench.profiles import load_workload, to_json
from lib_async_mover.plan.planner import make_plan
from lib_async_mover.plan.workload import MIB

PROFILE = Path(__file__).parents[1] / "profiles" / "profile_sd15_b2_512.json"
KEYS = ["budget_mb", "predicted_ms", "limit_ms", "streamed_mib", "units"]


def plan(capsys, *arguments):
    assert cli.main(["plan", "--profile", str(PROFILE), *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def rows_of(tmp_path, capsys, *arguments, profile=PROFILE):
    path = tmp_path / "plans.json"
    assert cli.main(["plan", "--profile", str(profile), "--json", str(path), *arguments]) == 0
    capsys.readouterr()
    return json.loads(path.read_text(encoding="utf-8"))


def test_rows_are_the_plans_in_the_order_asked_for(tmp_path, capsys):
    rows = rows_of(tmp_path, capsys, "--budget-mb", "512,128.5,50%,100%,0", "--bus-gbps", "12")
    assert [list(row) for row in rows] == 5 * [KEYS]
    workload = load_workload(PROFILE).scaled(gbps=12)
    assert [row["budget_mb"] for row in rows[:3]] == [
        512, 128.5, pytest.approx(workload.weight_bytes / 2 / MIB, rel=1e-5),
    ]  # fmt: skip
    small = make_plan(workload, round(128.5 * MIB))
    assert rows[1] == {
        "budget_mb": 128.5, "predicted_ms": small.predicted_ms, "limit_ms": small.limit_ms,
        "streamed_mib": small.streamed_bytes / MIB, "units": len(small.units),
    }  # fmt: skip
    assert all(row["limit_ms"] <= row["predicted_ms"] for row in rows)
    assert rows[3]["streamed_mib"] == 0 and rows[3]["predicted_ms"] == pytest.approx(workload.resident_ms)
    assert rows[4]["predicted_ms"] <= 1.03 * workload.resident_ms, "auto is as fast as everything"
    assert rows[4]["budget_mb"] < rows[3]["budget_mb"]


def test_rows_of_a_saved_workload_and_of_its_profile_are_the_same(tmp_path, capsys):
    saved = tmp_path / "workload.json"
    saved.write_text(to_json(load_workload(PROFILE)), encoding="utf-8")
    arguments = ("--budget-mb", "256,25%", "--bus-ratio", "2")
    assert rows_of(tmp_path, capsys, *arguments, profile=saved) == rows_of(tmp_path, capsys, *arguments)


def test_a_bus_ratio_is_how_many_steps_copying_everything_takes(tmp_path, capsys):
    [row] = rows_of(tmp_path, capsys, "--budget-mb", "64", "--bus-ratio", "4")
    workload = load_workload(PROFILE)
    slow = workload.scaled(gbps=workload.weight_bytes / (4 * workload.compute_ms * 1e6))
    assert row["predicted_ms"] == plan_for("64", slow).predicted_ms > 3 * workload.compute_ms


def test_a_line_for_each_budget(capsys):
    lines = plan(capsys, "--budget-mb", "128,512,100%,0")
    assert lines[0].startswith("391 leaves, 1639 MiB, 28.1 ms a step with everything resident; bus 55.4 GB/s")
    assert [line.split()[1] for line in lines[4:]] == ["128", "512", "100%", "auto"]


def test_without_budgets_the_curve(tmp_path, capsys):
    rows = rows_of(tmp_path, capsys)
    assert len(rows) > 10
    budgets, steps_ms = [row["budget_mb"] for row in rows], [row["predicted_ms"] for row in rows]
    assert budgets == sorted(budgets)
    assert all(after <= 1.005 * before for before, after in pairwise(steps_ms)), "a plan may cost that to copy less"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"leaves": [], "eager_ms": 1, "h2d_gbps": 1}', '{"eager_ms": 1}'])
def test_a_file_that_is_no_profile(text, tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BenchError, match="is not a profile"):
        load_workload(path)
