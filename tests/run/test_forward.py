"""Forwards that stray from the recorded order, fail, nest or meet other threads are right, only slower."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from lib_async_mover import attach
from lib_async_mover.errors import ConcurrentForwardError
from lib_async_mover.memory.leaf import ALIGN
from lib_async_mover.plan.workload import MIB
from lib_async_mover.run.forward_scope import signature_of
from tests.checked_backend import CheckedBackend
from tests.pair import Pair, hasty, weight_bytes
from tests.small import Net, image, make


@pytest.mark.parametrize("share", [0.15, 0.25, 0.4, 0.7, 1.0, 3.0])
def test_every_budget_is_exact(share: float) -> None:
    pair = Pair(share=share)
    pair.check(times=10)
    pair.close()


def test_no_leaf_is_loaded_on_demand_once_traced(pair: Pair) -> None:
    before = pair.on_demand_loads
    pair.check(times=5)
    assert pair.on_demand_loads == before


def test_the_arena_is_within_the_budget(pair: Pair) -> None:
    stats = pair.mover.stats()
    assert 0 < stats["arena_mib"] <= stats["budget_mb"] and stats["ring_mib"] < stats["weights_mib"]


PATHS = {
    "backwards": (5, 4, 3, 2, 1, 0),
    "twice": (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5),
    "whole cycle twice": (0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5),
    "middle skipped": (0, 5),
    "start skipped": (3, 4, 5),
    "end skipped": (0, 1),
    "one out of turn": (4, 0, 1, 2, 3, 4, 5),
    "nothing": (),
}


@pytest.mark.parametrize("share", [0.25, 0.8])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_other_orders(path: Sequence[int], share: float) -> None:
    pair = Pair(share=share)
    pair.check(times=6)
    for other in (path, range(6)):
        pair.both(lambda model: setattr(model, "path", other))  # noqa: B023 - called at once
        pair.check(times=3)
    pair.close()


def test_a_leaf_that_was_never_traced_joins_the_order_if_it_stays() -> None:
    pair = Pair()
    for path in ((0, 1, 2), range(6)):
        pair.both(lambda model: setattr(model, "path", path))  # noqa: B023
        pair.check(times=6)
    before = pair.on_demand_loads
    pair.check(times=3)
    assert pair.on_demand_loads == before
    pair.close()


class Cut(BaseException):
    """Like the host's InterruptedException, which is no Exception: torch calls no hook after it."""


@pytest.mark.parametrize("error", [RuntimeError, Cut])
@pytest.mark.parametrize("warm", [0, 1, 2, 8])
@pytest.mark.parametrize("step", [0, 4])
def test_a_forward_that_fails_leaves_everything_on_the_cpu(error: type, warm: int, step: int) -> None:
    pair = Pair()
    pair.check(times=warm)
    pair.model.fail_at, pair.model.error = step, error()
    with pytest.raises(error):
        pair.model(image())
    assert not pair.mover.busy
    if error is Cut:
        pair.mover.release()  # the next verb finds it cut off
    pair.check_weights()
    pair.model.fail_at = None
    pair.check(times=3)
    pair.close()


@pytest.mark.parametrize("share", [0.4, 1.5])
@pytest.mark.parametrize("verb", ["release", "invalidate_all", "pack", None])
def test_after_a_forward_that_was_cut_off_the_next_verb_or_forward_finds_nothing_bound(
    verb: str | None, share: float
) -> None:
    pair = Pair(share=share)
    pair.run(times=4)
    pair.model.fail_at, pair.model.error = 4, Cut()
    with pytest.raises(Cut):
        pair.model(image())
    pair.model.fail_at = None
    if verb:
        getattr(pair.mover, verb)()
    pair.check(times=2)
    pair.close()


class Failing(CheckedBackend):
    """Its copies raise while it is told to; ``failed`` of them did."""

    def __init__(self) -> None:
        self.fails = False
        self.failed = 0
        super().__init__(delay=self._fail, poison=True)

    def _fail(self, count: int) -> float:
        if self.fails:
            self.failed += 1
            raise RuntimeError("the bus is gone")
        return 0.0


@pytest.mark.parametrize("share", [0.3, 0.7, 1.5], ids=["streamed", "both", "resident"])
def test_a_copy_that_fails_is_raised_by_the_forward_that_waits_for_it(share: float) -> None:
    backend = Failing()
    pair = Pair(share=share, backend=backend)
    pair.check(times=6)
    for _ in range(2):
        pair.mover.release()
        backend.fails = True
        with pytest.raises(RuntimeError, match="the bus is gone"):
            pair.model(image())
        assert backend.failed and not pair.mover.busy
        backend.fails = False
        pair.check_weights()
        pair.check(times=2)
    pair.close()


def inside(pair: Pair, work: Callable[[], object]) -> torch.Tensor:
    """A forward in the middle of which ``work`` is done."""
    handle = pair.model.blocks[2].register_forward_pre_hook(lambda module, args: work() and None)
    result = pair.model(image(5))
    handle.remove()
    assert torch.equal(result, pair.twin(image(5)))
    return result


def elsewhere(work: Callable[..., object], *args: object) -> BaseException | None:
    """Does it in another thread. Returns what it raised."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work, *args).exception()


@pytest.mark.parametrize("warm", [1, 8])
def test_nested_forwards(warm: int) -> None:
    pair = Pair()
    pair.check(times=warm)
    seen: list[torch.Tensor] = []
    inside(pair, lambda: seen.append(torch.empty(0)) or seen.append(pair.model(image(99))) if not seen else None)
    assert torch.equal(seen[1], pair.twin(image(99)))
    pair.check(times=2)
    pair.close()


def test_a_second_thread_is_refused_and_the_first_goes_on(pair: Pair) -> None:
    raised: list[BaseException | None] = []
    inside(pair, lambda: raised.append(elsewhere(pair.model, image())))
    assert isinstance(raised[0], ConcurrentForwardError)
    pair.check()


def test_busy_says_whether_a_forward_runs(pair: Pair) -> None:
    seen: list[bool] = []
    inside(pair, lambda: seen.append(pair.mover.busy))
    assert seen == [True] and not pair.mover.busy


@pytest.mark.parametrize("warm", [0, 1, 8])
def test_a_part_called_by_itself(warm: int) -> None:
    pair = Pair()
    pair.check(times=warm)
    x = torch.randn(2, 64, 32)
    assert torch.equal(pair.model.blocks[1](x), pair.twin.blocks[1](x))
    pair.check_weights()
    with pytest.raises(RuntimeError):
        pair.model.blocks[1](torch.randn(2, 64, 31))
    pair.check_weights()
    pair.check(times=2)
    pair.close()


def test_two_models_take_turns() -> None:
    first, second = Pair(make(seed=1)), Pair(make(seed=2), seed=5)
    for i in range(12):
        first.check(seed=i)
        second.check(seed=i, times=1 + i % 2)
    first.close()
    second.close()


class Attending(Net):
    """Reads its output projection's weight without calling it, and shares a tensor between two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.blocks[4].late.weight = self.blocks[1].late.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return self.attention(y, y, y)[0]


def test_attention_and_shared_tensors() -> None:
    pair = Pair(make(Attending), 0.5)
    pair.check(times=8)
    assert pair.model.blocks[4].late.weight is pair.model.blocks[1].late.weight
    pair.close()


def test_a_whole_forward_is_waited_for_on_a_new_stream() -> None:
    """What the compute has waited for on one stream, it waits for again on another."""

    class Streams(CheckedBackend):
        current = waits = 0

        def use_current_stream(self) -> bool:
            self.current, changed = 0, bool(self.current)
            return changed

        def wait_for_copy(self, copy) -> None:  # type: ignore[no-untyped-def]
            self.waits += 1
            super().wait_for_copy(copy)

    backend = Streams(poison=True, delay=hasty())
    pair = Pair(share=1.5, backend=backend)
    pair.check(times=8)
    for changed in (0, 1, 0):
        backend.waits, backend.current = 0, changed
        pair.check()
        assert bool(backend.waits) == bool(changed)
    pair.close()


def test_signatures_tell_shapes_and_dtypes_apart() -> None:
    x = torch.zeros(2, 3)
    assert signature_of((x,), {}) == signature_of((x + 1,), {})
    assert signature_of((x,), {}) != signature_of((x[:1],), {})
    assert signature_of((x,), {}) != signature_of((x.half(),), {})
    assert signature_of((x,), {"y": x}) != signature_of((x,), {})


def test_other_input_sizes_are_profiled_for_themselves(pair: Pair) -> None:
    small = pair.mover.workload()
    pair.settle(size=16)
    large = pair.mover.workload()
    assert large is not small
    pair.settle()
    assert pair.mover.workload() is not large


def test_release_gives_everything_back_and_the_next_forward_takes_it_again(pair: Pair) -> None:
    for _ in range(3):
        for _ in range(2):
            pair.mover.release()
            assert pair.mover.stats()["arena_mib"] == 0 and pair.mover.stats()["state"] == "released"
        pair.check()
        assert pair.mover.stats()["arena_mib"] > 0 and pair.mover.stats()["state"] == "streaming"


def test_release_inside_a_forward_does_nothing(pair: Pair) -> None:
    inside(pair, pair.mover.release)
    assert pair.mover.stats()["arena_mib"] > 0


def test_release_from_another_thread_happens_at_the_end(pair: Pair) -> None:
    inside(pair, lambda: elsewhere(pair.mover.release))
    assert pair.mover.stats()["arena_mib"] == 0
    pair.check(times=2)


def test_a_forward_that_is_entered_by_another_method(pair: Pair) -> None:
    for i in range(4):
        x = image(i)
        result = entered(pair, x)
        assert torch.equal(result, pair.twin(x))
        pair.check_weights()
    pair.model.fail_at = 4
    with pytest.raises(type(pair.model.error)):
        entered(pair, x)
    pair.model.fail_at = None
    pair.check(times=2)


def entered(pair: Pair, x: torch.Tensor) -> torch.Tensor:
    """As an adapter does that calls another method than `__call__`; nested, as methods that call each other do."""
    completed = False
    pair.mover.enter_forward((x,), {}, sys._getframe())
    pair.mover.enter_forward((x,), {}, sys._getframe())
    try:
        result = pair.model.forward(x)
        completed = True
        return result
    finally:
        pair.mover.leave_forward(sys._getframe(), completed)
        pair.mover.leave_forward(sys._getframe(), completed)


def test_attaching_again_changes_the_budget(pair: Pair) -> None:
    for share in (0.3, 1.0, 0.6):
        wanted = share * weight_bytes(pair.model) / MIB
        assert attach(pair.model, "cpu", wanted) is pair.mover
        assert not pair.mover.settled
        pair.check(times=2)
        assert pair.mover.stats()["vram_mb"] == wanted
        assert pair.mover.stats()["budget_mb"] == pytest.approx(wanted, abs=ALIGN / MIB)


def test_inference_mode() -> None:
    pair = Pair()
    with torch.inference_mode():
        pair.run(times=8)
    pair.check(times=3)
    pair.close()


@pytest.mark.parametrize("share", [0.4, 1.5])
def test_autocast_caches_no_weight(share: float) -> None:
    pair = Pair(share=share)
    for i in range(6):
        with torch.autocast("cpu", torch.bfloat16):
            pair.run(times=2, seed=i)
    pair.check(times=2)
    pair.close()
