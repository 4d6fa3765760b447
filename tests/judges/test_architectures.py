"""Architectures that others wrote, streamed, give to the bit what they give by themselves."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import nn

from lib_async_mover import attach, detach
from lib_async_mover.plan.workload import MIB
from tests.checked_backend import CheckedBackend
from tests.judges import needed
from tests.pair import hasty

needed()

from tests.judges import dits, languages, pictures, unets  # noqa: E402
from tests.judges.case import Case, owned, packed_bytes, same, tensors  # noqa: E402

CASES = [*unets.CASES, *dits.CASES, *languages.CASES, *pictures.CASES]
WAYS = {"10%": 0.1, "35%": 0.35, "100%": 1.0, "whole": 0.0}  # the buffer's share of the weights
FORWARDS = 6


@lru_cache(maxsize=1)
def judged(case: Case) -> tuple[nn.Module, list[Any]]:
    """A model, and what it gives for each of the inputs."""
    model = case.model()
    results = [model(**case.draw(i)) for i in range(FORWARDS)]
    for one in tensors(results):
        assert not one.is_floating_point() or one.isfinite().all()
    constant = same(results[0], results[1])
    assert not constant, "it gives the same for every input, so that nothing can be seen"
    return model, results


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_architecture(case: Case, way: str) -> None:
    twin, expected = judged(case)
    model: Any = copy.deepcopy(twin)
    backend = CheckedBackend(poison=True, delay=hasty())
    mover = attach(model, "cpu", WAYS[way] * packed_bytes(model) / MIB, whole=way == "whole", backend=backend)
    for i in range(FORWARDS):
        inputs = case.draw(i)
        equal = same(model(**inputs), expected[i])
        assert equal, f"forward {i} gives something else"
    stats = mover.stats()
    assert stats["bytes_per_step"] > 0 or way in ("100%", "whole")
    assert stats["state"] == "streaming" and stats["arena_mib"] > 0
    detach(model)
    for (name, ours), (_, theirs) in zip(owned(model).items(), owned(twin).items(), strict=True):
        assert ours.device.type == "cpu" and type(ours) is type(theirs) and torch.equal(ours, theirs), name
    equal = same(model(**case.draw(0)), expected[0])
    assert equal, "the detached model gives something else"
