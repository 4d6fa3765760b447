"""The command line, from arguments to what is printed and returned."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from lib_async_mover import __main__ as cli
from lib_async_mover.bench.budget import parse_budgets
from lib_async_mover.bench.demo import demo_options
from lib_async_mover.bench.planning import PlanOptions, load_workload, on_bus, plans_for

pytestmark = pytest.mark.usefixtures("small_and_quick")

PROFILE = Path(__file__).parent / "profiles" / "profile_sd15_b2_512.json"


def test_bench_with_the_real_engine(tmp_path, capsys):
    rows, profile = tmp_path / "rows.json", tmp_path / "profile.json"
    arguments = (
        f"bench --model tiny --device cpu --batch 1 --size 32 --budget-mb 1,50%,0 --steps 3 --seed 5 --bus-gbps 2 "
        f"--json {rows} --save-profile {profile}"
    )
    status = cli.main(arguments.split())
    printed = capsys.readouterr().out
    assert status == 0, printed
    saved = json.loads(rows.read_text(encoding="utf-8"))
    assert [(row["mover"], row["budget"]) for row in saved] == [
        ("resident", None), ("async", "100%"), ("stock", None), ("async", "1"), ("async", "50%"), ("async", "auto"),
    ]  # fmt: skip
    assert all(row["exact"] is True for row in saved)
    streamed = saved[3]
    for key in ("ms_per_step", "predicted_ms", "limit_ms", "bound_ms", "stall_share", "attach_s", "pinned_mib"):
        assert streamed[key] is not None and streamed[key] >= 0, key
    assert streamed["bytes_per_step"] > 0 and saved[1]["bytes_per_step"] == 0
    assert printed.splitlines()[-1].endswith("every output is bit-identical.")

    assert cli.main(["plan", "--profile", str(profile), "--budget-mb", "1,50%"]) == 0
    assert "50%" in capsys.readouterr().out


def test_plan_from_a_recorded_profile(capsys):
    assert cli.main(["plan", "--profile", str(PROFILE), "--budget-mb", "512,128,100%,0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("391 leaves, 1639 MiB, 28.1 ms a step with everything resident; bus 55.4 GB/s")
    pictures = [line for line in lines if line.startswith(("128: ", "512: ", "100%: ", "auto: "))]
    assert len(pictures) == 4
    assert pictures[0].startswith("128: 128 MB, bus-bound, waiting")
    assert any(line.startswith("input_blocks.4 ") and "·" in line for line in lines)
    assert any(line.startswith("middle_block.1") and "■" in line for line in lines)
    table = [line.split() for line in lines if line.split() and line.split()[0] in ("128", "512", "100%", "auto")]
    assert [line[0] for line in table][:2] == ["128", "512"]
    times = [float(line[2]) for line in table]
    limits = [float(line[4]) for line in table]
    assert times == sorted(times, reverse=True)
    assert all(limit <= time + 0.05 for time, limit in zip(times, limits, strict=True))


def test_plan_without_budgets_prints_the_curve(capsys):
    assert cli.main(["plan", "--profile", str(PROFILE)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.split()[0:1] and line.split()[0].endswith("%")]
    assert len(rows) > 10
    speeds = [float(row[3]) for row in rows]
    assert speeds == sorted(speeds), "more VRAM is never slower"
    assert [line for line in lines if line.startswith("auto: ")]


def test_plan_of_a_model_measured_here(capsys, tmp_path):
    saved = tmp_path / "tiny.json"
    arguments = f"plan --model tiny --device cpu --batch 1 --size 32 --bus-gbps 1 --budget-mb 1 --save {saved}"
    assert cli.main(arguments.split()) == 0
    workload = load_workload(saved)
    assert workload.compute_ms > 0 and workload.gbps > 0
    assert workload.weight_bytes >= sum(p.numel() * 4 for p in torch.nn.Linear(1, 1).parameters())


def test_plan_on_another_bus():
    workload = load_workload(PROFILE)
    assert on_bus(workload, PlanOptions(())).gbps == 55.4
    assert on_bus(workload, PlanOptions((), bus_gbps=12.0)).gbps == 12.0
    twice = on_bus(workload, PlanOptions((), bus_ratio=2.0))
    assert twice.weight_bytes / twice.bytes_per_ms == pytest.approx(2 * workload.compute_ms)
    [(_, fast)] = plans_for(workload, tuple(parse_budgets("128")))
    [(_, slow)] = plans_for(twice, tuple(parse_budgets("128")))
    assert slow.predicted_ms > fast.predicted_ms


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("bench --model tiny --device cpu --size 100", "divide by"),
        ("bench --model tiny --device cpu --steps 0", "at least 1"),
        ("bench --model tiny --device cpu --budget-mb much", "not 'much'"),
        ("bench --model tiny --device cpu --bus-gbps 0", "above 0"),
        ("plan", "--profile FILE"),
        ("plan --profile no-such-file.json", "is not a profile"),
        (f"plan --profile {Path(__file__)}", "is not a profile"),
    ],
)
def test_refusals(arguments, message, capsys):
    assert cli.main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize("arguments", ["", "fly", "bench --model sd9", "bench --bus-ratio 1 --bus-gbps 1"])
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    assert stop.value.code == 2


def test_help_can_be_printed(capsys):
    for command in ("bench", "plan", "demo"):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
    assert "50%" in capsys.readouterr().out


def test_demo_suits_the_machine():
    on_cpu, on_gpu = demo_options("cpu"), demo_options("cuda")
    assert (on_cpu.model, on_gpu.model) == ("tiny", "sd15")
    assert on_cpu.bus_ratio is not None and on_gpu.bus_ratio is None
    assert on_gpu.image_size_px == 512 and on_gpu.batch == 2 and on_gpu.stock and on_gpu.steps == 10
    assert [budget.label for budget in on_gpu.budgets] == ["128", "256", "512", "1024", "50%"]


def test_demo_runs(monkeypatch, capsys):
    quick = dataclasses.replace(demo_options("cpu"), steps=2, size_px=32, batch=1)
    monkeypatch.setattr(cli, "demo_options", lambda device: quick)
    assert cli.main(["demo"]) == 0
    assert "bit-identical" in capsys.readouterr().out.splitlines()[-1]
