"""The benchmark in a real webui: every configuration has its row, a failing one its error, and no process stays."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real_webui import INSIDE, ROOT, python_of, webui_dir

pytestmark = [
    pytest.mark.webui,
    pytest.mark.skipif(webui_dir() is None, reason="set WEBUI_DIR to a stable-diffusion-webui 1.10 to run these"),
]


def command(tmp_path: Path, *given: str) -> list[str]:
    folder = webui_dir()
    assert folder is not None
    return [
        sys.executable, "-m", "lib_async_mover.bench.webui", "--webui", str(folder), "--python", python_of(folder),
        "--data-dir", str(tmp_path / "data"), "--json", str(tmp_path / "rows.json"), *given,
        "--", *shlex.split(os.environ.get("WEBUI_ARGS", "")),
    ]  # fmt: skip


def run(tmp_path: Path, *given: str, expected: int = 0, more: tuple[str, ...] = ()) -> list[dict]:
    env = os.environ | {"ASYNC_LOWVRAM_BACKEND": "cpu"}
    ended = subprocess.run(
        [*command(tmp_path, *given), *more], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == expected, ended.stdout + ended.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(f"`{row['name']}`" in ended.stdout for row in rows)
    return rows


def test_every_configuration_has_a_row_and_the_same_pixels(tmp_path):
    given = ("--size", "128", "--steps", "4", "--rounds", "1", "--buffers", "auto,16", "--bus-gbps", "0.1")
    rows = run(tmp_path, *given)
    names = ["no flag", "--medvram", "--lowvram", "--async-lowvram, auto", "--async-lowvram, 16 MB"]
    assert [row["name"] for row in rows] == names
    assert len({row["pixels_sha256"] for row in rows}) == 1
    for row in rows:
        assert row["error"] is None
        assert min(row[key] for key in ("first_s", "image_s", "load_s", "startup_s", "rss_mib")) > 0
        assert row["peak_rss_mib"] >= row["rss_mib"]
        assert (row["bus_gbps"], row.get("note")) in [(0.1, None), (None, "its bus is not slowed")]
    assert rows[-1]["h2d_gbps"] == pytest.approx(0.1, rel=0.3)  # the bus that was played


def test_a_webui_that_does_not_start_is_a_row(tmp_path):
    (row,) = run(tmp_path, "--flags", "lowvram", expected=1, more=("--no-such-argument",))
    assert "webui.py: error: unrecognized arguments: --no-such-argument" in row["error"]


def test_an_image_that_fails_is_a_row_and_the_run_goes_on(tmp_path):
    card = ("--vram-gb", "0.1", "--extension", str(small_card(tmp_path)))
    rows = run(tmp_path, "--flags", "none,lowvram", "--size", "128", *card, expected=1)
    assert len(rows) == 2 and all("HTTP 500: OutOfMemoryError" in row["error"] for row in rows), rows


def small_card(tmp_path: Path) -> Path:
    scripts = tmp_path / "small-card" / "scripts"
    scripts.mkdir(parents=True)
    shutil.copy(INSIDE / "small_card.py", scripts)
    return scripts.parent


def test_small_cards(tmp_path):
    sizes = ("--size", "256", "--px-step", "64", "--most-px", "384", "--most-batch", "2", "--vram-gb", "4,8,2")
    rows = run(tmp_path, "--flags", "lowvram,async", "--small-cards", *sizes, "--extension", str(small_card(tmp_path)))
    assert [(row["vram_gb"], row["largest_px"], row["largest_batch"]) for row in rows] == 2 * [
        (8, 320, 2), (4, 256, 1), (2, 0, 0),
    ]  # fmt: skip
    stock, ours = rows[:3], rows[3:]
    assert all(row["error"] is None for row in rows)
    assert any("OutOfMemoryError" in text for text in stock[0]["failures"].values())
    for one, other in zip(stock, ours, strict=True):
        for what in one["pixels"].keys() & other["pixels"].keys():
            assert one["pixels"][what] == other["pixels"][what], what


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signal to one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_webui_stays_behind(tmp_path, number):
    psutil = pytest.importorskip("psutil")
    process = subprocess.Popen(command(tmp_path, "--flags", "lowvram"), cwd=ROOT, stderr=subprocess.DEVNULL)
    children = []
    until = time.monotonic() + 60
    while not children and time.monotonic() < until:
        children = psutil.Process(process.pid).children()
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(number)
    process.wait(30)
    assert children and not any(child.is_running() for child in children)
