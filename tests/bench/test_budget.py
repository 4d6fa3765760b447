"""Budgets, as written on a command line."""

from __future__ import annotations

import pytest

from lib_async_mover.bench.budget import AUTO, EVERYTHING, budget_mb, parse_budgets
from lib_async_mover.bench.errors import BenchError

MIB = 2**20


def test_reads_megabytes_shares_and_auto():
    assert parse_budgets("128, 256.5MB,50%,0,auto,100.0%,128,") == ("128", "256.5", "50%", AUTO, EVERYTHING)


@pytest.mark.parametrize("text", ["-1", "x", "50%%", "0%", "-5%", "nan", "inf", "1,,x"])
def test_refuses_the_rest(text):
    with pytest.raises(BenchError, match="megabytes"):
        parse_budgets(text)


def test_megabytes():
    assert [budget_mb(budget, 10 * MIB) for budget in ("256", "25%", AUTO)] == [256, 2.5, 0]


def test_everything_has_room_for_alignment():
    assert 1010 <= budget_mb(EVERYTHING, 1000 * MIB) <= 1016
