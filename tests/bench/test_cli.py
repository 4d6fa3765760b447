"""The command line, from arguments to what is printed, written and returned."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from lib_async_mover.bench import cli
from lib_async_mover.bench.profiles import load_workload

pytestmark = pytest.mark.usefixtures("small_and_quick")

PROFILE = Path(__file__).parents[1] / "profiles" / "profile_sd15_b2_512.json"


def test_bench_and_plan_with_the_real_engine(tmp_path, capsys, caplog):
    rows, profile, plans = tmp_path / "rows.json", tmp_path / "profile.json", tmp_path / "plans.json"
    arguments = (
        f"bench --model tiny --device cpu --batch 1 --size 32 --budget-mb 1,50%,0 --steps 3 --seed 5 --bus-gbps 2 "
        f"--json {rows} --save-profile {profile}"
    )
    with caplog.at_level(logging.INFO, "async_lowvram"):
        status = cli.main(arguments.split())
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert [said for said in caplog.messages if said.startswith("tiny ")][:3] == [
        "tiny resident ...", "tiny stock ...", "tiny async 100% ...",
    ]  # fmt: skip
    saved = json.loads(rows.read_text(encoding="utf-8"))
    assert [(row["mover"], row["budget"]) for row in saved] == [
        ("resident", None), ("stock", None), ("async", "100%"), ("async", "1"), ("async", "50%"), ("async", "auto"),
    ]  # fmt: skip
    assert all(row["exact"] is True for row in saved)
    streamed = saved[3]
    for key in ("ms_median", "resident_ms", "predicted_ms", "limit_ms", "stall_share", "attach_s", "warmup_forwards"):
        assert streamed[key] is not None and streamed[key] >= 0, key
    assert streamed["bytes_per_step"] > 0 and saved[2]["bytes_per_step"] == 0
    assert streamed["bus_gbps"] == 2.0 and saved[0]["bus_gbps"] is None
    assert printed.splitlines()[-1].endswith("every output is bit-identical.")

    assert cli.main(["plan", "--profile", str(profile), "--budget-mb", "1,50%", "--json", str(plans)]) == 0
    assert "50%" in capsys.readouterr().out
    assert len(json.loads(plans.read_text(encoding="utf-8"))) == 2
    assert load_workload(profile).compute_ms > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("bench --model tiny --device cpu --size 100", "divide by"),
        ("bench --model tiny --device cpu --budget-mb much", "not 'much'"),
        ("plan --profile no-such-file.json", "is not a profile"),
        (f"plan --profile {Path(__file__)}", "is not a profile"),
    ],
)
def test_refusals(arguments, message, capsys):
    assert cli.main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize(
    "arguments",
    ["", "fly", "plan", "bench --model sd9", "bench --bus-ratio 1 --bus-gbps 1", "bench --steps 0", "bench --batch 0"],
)
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("usage: python -m lib_async_mover")


def test_help_can_be_printed(capsys):
    for command in ("bench", "plan", "demo", "timeline", "report"):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
    assert "50%" in capsys.readouterr().out


@pytest.mark.parametrize(("device", "model"), [("cpu", "tiny"), ("cuda", "sd15")])
def test_the_demo_suits_the_machine(device, model, monkeypatch):
    asked = []

    class Stopped(Exception):
        pass

    class NoRunner:
        def __init__(self, options):
            asked.append(options)
            raise Stopped

    monkeypatch.setattr(cli, "Runner", NoRunner)
    with pytest.raises(Stopped):
        cli.main(["demo", "--device", device])
    [options] = asked
    assert (options.model, options.device, options.batch, options.stock) == (model, device, 2, True)
    assert (options.bus_ratio is not None) == (device == "cpu")
    assert "50%" in options.budgets
