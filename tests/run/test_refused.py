"""What cannot be right is refused in words, and nothing is lost by it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from lib_async_mover.errors import ConcurrentForwardError, GradientError, RecordingError
from tests.pair import Pair
from tests.small import Chain, make, rows


@pytest.fixture
def chain() -> Pair:
    pair = Pair(make(Chain), 0.4, inputs=rows)
    pair.check(times=6)
    return pair


def gradient(model: nn.Module) -> torch.Tensor:
    x = rows().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(model(x).sum(), x)[0]


def test_a_gradient_through_slots_is_refused(chain: Pair) -> None:
    with pytest.raises(GradientError, match="streamed through a buffer"):
        gradient(chain.model)
    chain.check(times=2)


def test_a_gradient_is_right_where_everything_stays() -> None:
    pair = Pair(make(Chain), 2.0, inputs=rows)
    for _ in range(6):
        assert torch.equal(gradient(pair.model), gradient(pair.twin))
        pair.mover.release()


@pytest.mark.parametrize("share", [0.4, 2.0])
def test_what_autograd_has_saved_is_never_taken_for_another_weight(share: float) -> None:
    """A graph from within a forward, of which no result tells."""

    class Leaks(Chain):
        def after(self, x: torch.Tensor) -> torch.Tensor:
            self.inner = self.layers[0](x.detach().requires_grad_()).square().sum()
            return x.detach()

    pair = Pair(make(Leaks), share, inputs=rows)
    for i in range(8):
        with torch.enable_grad():
            pair.run(seed=i)
            graphs = pair.model.inner, pair.twin.inner
        pair.both(lambda model: model.layers[0].weight.data.add_(0))
        if i == 6:
            pair.mover.release()
        elif i == 7:
            with torch.no_grad():
                pair.model.layers[0].weight.mul_(1.0)
                pair.run()
        try:
            ours = torch.autograd.grad(graphs[0], leaves_of(graphs[0]))
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
        else:
            assert torch.equal(ours[0], torch.autograd.grad(graphs[1], leaves_of(graphs[1]))[0])


def leaves_of(loss: torch.Tensor) -> list[torch.Tensor]:
    """The input that the graph ends in."""
    found, todo = [], [loss.grad_fn]
    while todo:
        node = todo.pop()
        if hasattr(node, "variable") and node.variable.shape == (4, 32):
            found.append(node.variable)
        todo += [after for after, _ in node.next_functions if after is not None]
    return found


def test_grad_mode_alone_does_no_harm(chain: Pair) -> None:
    with torch.enable_grad():
        chain.run(times=3)
    chain.check(times=3)


def recorded(model: nn.Module) -> None:
    torch.jit.trace(model, (rows(),), check_trace=False)


@pytest.mark.parametrize("record", [recorded, lambda model: make_fx(model)(rows())], ids=["jit.trace", "make_fx"])
@pytest.mark.parametrize("before", [0, 6], ids=["first forward", "streaming"])
def test_a_recording_is_refused(record: Callable[[nn.Module], object], before: int) -> None:
    pair = Pair(make(Chain), 0.4, inputs=rows)
    pair.run(times=before)
    with pytest.raises(RecordingError, match="detach it first"):
        record(pair.model)
    pair.check(times=4)


@pytest.mark.skipif(torch.__version__.startswith("2.1."), reason="dynamo of torch 2.1 fails on the hooks, in words")
def test_torch_compile_is_right(chain: Pair) -> None:
    compiled = torch.compile(chain.model, backend="eager")
    for i in range(3):
        assert torch.equal(compiled(rows(i)), chain.twin(rows(i)))


def test_a_refused_thread_does_not_end_the_first_ones_forward(chain: Pair) -> None:
    seen: list[object] = []

    def call() -> None:
        with pytest.raises(ConcurrentForwardError), torch.no_grad():
            chain.model(rows())
        seen.append(chain.mover.busy)

    def meanwhile(*_: object) -> None:
        if not seen:
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
            seen.append(chain.mover.busy)

    handle = chain.model.layers[4].register_forward_pre_hook(meanwhile)
    chain.run()
    handle.remove()
    assert seen == [True, True]
    chain.check(times=2)


def test_a_nested_call_that_others_refuse_does_not_end_the_outer_one(chain: Pair) -> None:
    refuse = []

    def refusing(*_: object) -> None:
        if refuse:
            raise ValueError("not now")

    def nested(*_: object) -> None:
        if not refuse:
            refuse.append(True)
            with pytest.raises(ValueError, match="not now"):
                chain.model(rows())
            assert chain.mover.busy

    chain.model.register_forward_pre_hook(refusing, prepend=True)
    handle = chain.model.layers[4].register_forward_pre_hook(nested)
    chain.run()
    handle.remove()
    refuse.clear()
    chain.check(times=2)
