"""Profiles in files: recorded ones, and what a file gives back."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given

from lib_async_mover.bench.errors import BenchError
from lib_async_mover.bench.profiles import load_workload, to_json, workload_of_profile
from lib_async_mover.errors import PlanError
from lib_async_mover.plan.workload import Workload
from tests.workloads import profile, workloads


def test_profile_times_are_scaled_to_the_forward() -> None:
    assert profile("sd15_b2_512").compute_ms == pytest.approx(28.092)
    assert len(profile("sdxl_b2_1024").leaves) == 1050


@pytest.mark.parametrize("data", [{}, {"leaves": []}, {"leaves": [["a"]], "eager_ms": 1, "h2d_gbps": 1}])
def test_what_is_no_profile_is_refused(data: dict) -> None:
    with pytest.raises(PlanError, match="not a recorded profile"):
        workload_of_profile(data)


def read(text: str) -> Workload:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        path.write_text(text)
        return load_workload(path)


@given(workloads())
def test_a_file_gives_back_an_equal_workload(workload: Workload) -> None:
    again = read(to_json(workload))
    assert again == workload
    assert hash(again) == hash(workload)


@pytest.mark.parametrize("text", ["", "[]", "7", '{"gbps": 1}', '{"leaves": [], "barriers": [], "gbps": 1}'])
def test_a_file_that_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="is not a profile"):
        read(text)
