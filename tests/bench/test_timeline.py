"""The picture of a forward is well-formed and adds up."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from lib_async_mover.bench.cli import main
from lib_async_mover.bench.profiles import load_workload
from lib_async_mover.bench.timeline import timeline

PROFILE = Path(__file__).parents[1] / "profiles" / "profile_sd15_b2_512.json"
RECT = "{http://www.w3.org/2000/svg}rect"


def bars(svg: str, kind: str) -> float:
    return sum(float(rect.get("width")) for rect in ElementTree.fromstring(svg).iter(RECT) if rect.get("class") == kind)


def test_a_larger_buffer_waits_less_and_copies_less():
    workload = load_workload(PROFILE).scaled(5.8, 12.0)
    small, large = timeline(workload, 128), timeline(workload, 512)
    assert bars(small, "waiting") > bars(large, "waiting")
    assert bars(small, "copy") > bars(large, "copy") > 0


def test_the_command_writes_it(tmp_path):
    target = tmp_path / "new" / "timeline.svg"
    assert main(["timeline", "--profile", str(PROFILE), "--budget-mb", "256", str(target)]) == 0
    assert "256 MB" in target.read_text()
