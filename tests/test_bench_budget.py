"""Budgets, as written on a command line."""

from __future__ import annotations

import pytest

from lib_async_mover.bench.budget import EVERYTHING, Budget, parse_budgets
from lib_async_mover.bench.errors import BenchError

MIB = 2**20


def test_reads_megabytes_shares_and_auto():
    assert parse_budgets("128, 256.5,50%,0,auto,100%,128,") == [
        Budget(mb=128.0), Budget(mb=256.5), Budget(share=0.5), Budget(mb=0.0), EVERYTHING,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["-1", "x", "50%%", "0%", "-5%", "nan", "inf", "1,,x"])
def test_refuses_the_rest(text):
    with pytest.raises(BenchError, match="megabytes"):
        parse_budgets(text)


def test_labels():
    assert [budget.label for budget in parse_budgets("128,256.5,50%,12.5%,0")] == [
        "128", "256.5", "50%", "12.5%", "auto",
    ]  # fmt: skip


def test_megabytes():
    assert Budget(mb=256.0).to_mb(10 * MIB) == 256
    assert Budget(share=0.25).to_mb(10 * MIB) == 2.5
    assert Budget(mb=0.0).to_mb(10 * MIB) == 0


def test_everything_has_room_for_alignment():
    assert EVERYTHING.to_mb(1000 * MIB) >= 1010
    assert EVERYTHING.to_mb(1000 * MIB) <= 1016
