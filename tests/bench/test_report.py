"""Tables in the documents come from rows of the benchmark."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from lib_async_mover.bench import report
from lib_async_mover.bench.cli import main
from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.row import Row

BEGIN, END = report.markers(report.ENGINE)


def row(mover, **values):
    shared = dict(model="sd15", batch=2, size=512, dtype="float16", steps=10, seed=0, weights_mib=1639.4)
    return asdict(Row(mover, **shared, torch="2.11", gpu="NVIDIA X", **values))


ROWS = [
    row("resident", ms_per_step=30.0, peak_weights_mib=1639.4, exact=None),
    row("stock", ms_per_step=400.04, peak_weights_mib=115.2, exact=True),
    row(
        "async", budget="256", budget_mb=256, ms_per_step=40.0, peak_weights_mib=256.0, exact=True, h2d_gbps=55.4,
        resident_ms=32.0, limit_ms=38.5, predicted_ms=39.5,
    ),
    row("async", budget="16", budget_mb=16, error="ArenaAllocationError: no"),
]


def test_documents_are_rewritten_between_their_markers(tmp_path):
    document, rows = tmp_path / "README.md", tmp_path / "rows.json"
    rows.write_text(json.dumps(ROWS))
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        assert main(["report", str(rows), "--into", str(document)]) == 0
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "old" not in text and text.count("NVIDIA X") == 1


def test_a_document_without_markers_is_left_alone(tmp_path):
    document, rows = tmp_path / "README.md", tmp_path / "rows.json"
    rows.write_text(json.dumps(ROWS))
    document.write_text("nothing here")
    assert main(["report", str(rows), "--into", str(document)]) == 2
    assert document.read_text() == "nothing here"
    for text in (END + BEGIN, 2 * (BEGIN + END), BEGIN):
        with pytest.raises(BenchError, match="expected one"):
            report.rewrite(text, "")


def test_images_of_the_webui_have_a_table_of_their_own():
    image = dict(name="--lowvram", model="sd15", gpu="NVIDIA X", torch="2.11", size=512, steps=20)
    measured = dict(ms_per_step=422.8, image_s=8.58, peak_mib=776, pixels_sha256="b03047b7fd744793")
    text = report.format_run([image | measured])
    assert text.startswith("**sd15 in the webui, 512 × 512, 20 steps**; NVIDIA X, torch 2.11.")
    cells = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert cells == ["`--lowvram`", "422.8", "8.58", "776 MiB", "`b03047b7fd74`"]


def test_a_laptop_is_predicted_from_a_recorded_profile():
    text = report.laptop_table(report.PROFILE)
    assert "*predicted*" in text and "12 GB/s" in text
    rows = [line.split(" | ") for line in text.splitlines() if " MB | " in line]
    times = [float(row[1]) for row in rows]
    assert times == sorted(times, reverse=True) and times[-1] == pytest.approx(report.LAPTOP_MS, rel=0.02)


def test_a_document_whose_tables_differ_fails_the_check(tmp_path):
    document, rows = tmp_path / "README.md", tmp_path / "rows.json"
    rows.write_text(json.dumps(ROWS))
    document.write_text(f"{BEGIN}\n{END}\n")
    arguments = ["report", str(rows), "--into", str(document)]
    before = document.read_text()
    assert main([*arguments, "--check"]) != 0
    assert document.read_text() == before
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
