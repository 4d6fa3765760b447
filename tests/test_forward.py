"""Forwards that stray from the recorded order are right, only slower."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_async_mover import attach, detach, mover_of
from lib_async_mover.errors import ConcurrentForwardError
from tests.conftest import MIB, Pair, weight_bytes
from tests.small import Net, image, make


@pytest.mark.parametrize("share", [0.02, 0.15, 0.4, 0.7, 1.0, 3.0])
def test_every_budget_is_exact(share: float) -> None:
    Pair(make(), share).check(times=10)


def test_no_leaf_is_loaded_on_the_spot_once_traced(pair: Pair) -> None:
    before = pair.loads_on_the_spot
    pair.check(times=5)
    assert pair.loads_on_the_spot == before


def test_the_arena_is_within_the_budget(pair: Pair) -> None:
    stats = pair.mover.stats()
    assert stats["arena_mib"] <= stats["budget_mb"]
    assert stats["ring_mib"] < stats["weights_mib"]


class Wayward(Net):
    """Runs what its ``path`` says: block numbers in any order, any number of times."""

    path: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    fail_at: int | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.table
        for step, number in enumerate(self.path):
            if step == self.fail_at:
                raise RuntimeError("an out-of-memory error, say")
            x = self.blocks[number](x)
        return self.out(self.narrow(torch.tanh(self.wide(x))))


PATHS = {
    "backwards": (5, 4, 3, 2, 1, 0),
    "twice": (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5),
    "whole cycle twice": (0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5),
    "middle skipped": (0, 5),
    "start skipped": (3, 4, 5),
    "end skipped": (0, 1),
    "stray": (4, 0, 1, 2, 3, 4, 5),
    "nothing": (),
}


@pytest.mark.parametrize("share", [0.15, 0.4, 0.8])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_other_orders(path: tuple[int, ...], share: float) -> None:
    pair = Pair(make(Wayward), share)
    pair.check(times=6)
    pair.both(lambda model: setattr(model, "path", path))
    pair.check(times=3)
    pair.both(lambda model: setattr(model, "path", Wayward.path))
    pair.check(times=3)


def test_orders_that_change_every_time() -> None:
    pair = Pair(make(Wayward), 0.3)
    dice = torch.Generator().manual_seed(0)
    for round_ in range(40):
        path = tuple(torch.randint(0, 6, (int(torch.randint(0, 9, (), generator=dice)),), generator=dice).tolist())
        pair.both(lambda model, path=path: setattr(model, "path", path))
        pair.check(seed=round_)


def test_a_leaf_that_was_never_traced_joins_the_order_if_it_stays() -> None:
    pair = Pair(make(Wayward), 0.4)
    pair.both(lambda model: setattr(model, "path", (0, 1, 2)))
    pair.check(times=6)
    pair.both(lambda model: setattr(model, "path", Wayward.path))
    pair.check(times=6)
    before = pair.loads_on_the_spot
    pair.check(times=3)
    assert pair.loads_on_the_spot == before


@pytest.mark.parametrize("step", [0, 2, 5])
@pytest.mark.parametrize("warm", [0, 1, 2, 8])
def test_an_exception_leaves_everything_on_the_cpu(step: int, warm: int) -> None:
    pair = Pair(make(Wayward))
    pair.check(times=warm)
    pair.model.fail_at = step
    with pytest.raises(RuntimeError, match="out-of-memory"):
        pair.model(image())
    pair.check_weights()
    pair.model.fail_at = None
    pair.check(times=3)


class Cut(BaseException):
    """Like the host's InterruptedException, which is no Exception, so torch calls no hook after it."""


@pytest.mark.parametrize("warm", [1, 2, 8])
def test_a_forward_cut_off_by_a_base_exception_is_recovered_from(warm: int) -> None:
    pair = Pair(make(Wayward))
    pair.check(times=warm)

    def cut(module: nn.Module, args: tuple) -> None:
        raise Cut

    handle = pair.model.blocks[3].register_forward_pre_hook(cut)
    with pytest.raises(Cut):
        pair.model(image())
    handle.remove()
    pair.mover.release()
    pair.check_weights()
    pair.check(times=3)


def test_nested_forwards() -> None:
    pair = Pair(make())
    seen = []

    def inner(module: nn.Module, args: tuple) -> None:
        if not seen:
            seen.append(None)
            seen[0] = pair.model(image(99))

    pair.check(times=8)
    handle = pair.model.blocks[2].register_forward_pre_hook(inner)
    outer = pair.model(image(5))
    handle.remove()
    assert torch.equal(outer, pair.twin(image(5)))
    assert torch.equal(seen[0], pair.twin(image(99)))
    pair.check(times=2)


def test_a_second_thread_is_refused_and_the_first_goes_on(pair: Pair) -> None:
    from concurrent.futures import ThreadPoolExecutor

    failures = []

    def other(module: nn.Module, args: tuple) -> None:
        with ThreadPoolExecutor(1) as pool:
            failures.append(pool.submit(pair.model, image()).exception())

    handle = pair.model.blocks[2].register_forward_pre_hook(other)
    result = pair.model(image(3))
    handle.remove()
    assert isinstance(failures[0], ConcurrentForwardError)
    assert torch.equal(result, pair.twin(image(3)))
    pair.check()


@pytest.mark.parametrize("warm", [0, 1, 8])
def test_a_part_called_by_itself(warm: int) -> None:
    pair = Pair(make())
    pair.check(times=warm)
    x = torch.randn(2, 64, 32)
    assert torch.equal(pair.model.blocks[1](x), pair.twin.blocks[1](x))
    pair.check_weights()
    with pytest.raises(RuntimeError):
        pair.model.blocks[1](torch.randn(2, 64, 31))
    pair.check_weights()
    pair.check(times=2)


def test_two_models_take_turns() -> None:
    first, second = Pair(make(seed=1)), Pair(make(seed=2), seed=5)
    for i in range(12):
        first.check(seed=i)
        second.check(seed=i, times=1 + i % 2)


def test_multihead_attention_reads_its_output_projection_directly() -> None:
    class Attending(Net):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return self.attention(y, y, y)[0]

    Pair(make(Attending), 0.5).check(times=8)


def test_shared_tensors_stay_shared() -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.blocks[4].late.weight = self.blocks[1].late.weight

    pair = Pair(make(Tied), 0.5)
    pair.check(times=8)
    assert pair.model.blocks[4].late.weight is pair.model.blocks[1].late.weight


def test_other_input_sizes_are_profiled_for_themselves() -> None:
    pair = Pair(make())
    pair.settle()
    small = pair.mover.workload()
    pair.settle(size=16)
    large = pair.mover.workload()
    assert large is not small
    pair.settle()
    assert pair.mover.workload() is not large


def test_release_gives_everything_back_and_the_next_forward_takes_it_again(pair: Pair) -> None:
    for _ in range(3):
        pair.mover.release()
        assert pair.mover.stats()["arena_mib"] == 0
        pair.mover.release()
        pair.check()
        assert pair.mover.stats()["arena_mib"] > 0
    pair.mover.release()
    pair.mover.prefetch()
    pair.check(times=2)


def test_release_inside_a_forward_does_nothing(pair: Pair) -> None:
    handle = pair.model.blocks[2].register_forward_pre_hook(lambda module, args: pair.mover.release())
    pair.check(times=2)
    handle.remove()
    assert pair.mover.stats()["arena_mib"] > 0


def test_release_from_another_thread_happens_at_the_end(pair: Pair) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def other(module: nn.Module, args: tuple) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(pair.mover.release).result()

    handle = pair.model.blocks[2].register_forward_pre_hook(other)
    pair.check()
    handle.remove()
    assert pair.mover.stats()["arena_mib"] == 0
    pair.check(times=2)


def test_running_brackets_a_forward_that_is_not_a_call(pair: Pair) -> None:
    for i in range(4):
        x = image(i)
        with pair.mover.running(x), pair.mover.running(x):
            result = pair.model.forward(x)
        assert torch.equal(result, pair.twin(x))
        pair.check_weights()
    with pytest.raises(KeyError), pair.mover.running(x):
        pair.model.forward(x)
        raise KeyError
    pair.check(times=2)


def test_attaching_again_changes_the_budget(pair: Pair) -> None:
    for share in (0.2, 1.0, 0.6):
        wanted = share * weight_bytes(pair.model) / MIB
        assert attach(pair.model, "cpu", wanted) is pair.mover
        pair.check(times=2)
        assert pair.mover.stats()["vram_mb"] == wanted


def test_detach_leaves_nothing_behind() -> None:
    model = make()
    hooks = {name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in model.named_modules()}
    pair = Pair(model)
    pair.check(times=8)
    pair.model.blocks[0](torch.randn(2, 64, 32))
    detach(model)
    assert mover_of(model) is None
    after = {name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in model.named_modules()}
    assert after == hooks
    pair.check(times=2)
    detach(model)


def test_detach_inside_a_forward_is_refused(pair: Pair) -> None:
    def undo(module: nn.Module, args: tuple) -> None:
        with pytest.raises(ConcurrentForwardError):
            detach(pair.model)

    handle = pair.model.blocks[2].register_forward_pre_hook(undo)
    pair.check()
    handle.remove()


def test_inference_mode() -> None:
    pair = Pair(make())
    with torch.inference_mode():
        for i in range(8):
            assert torch.equal(pair.model(image(i)), pair.twin(image(i)))
    pair.check(times=3)


def test_autocast_caches_no_weight() -> None:
    pair = Pair(make())
    for i in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(pair.model(image(i)), pair.twin(image(i)))
    pair.check(times=2)
