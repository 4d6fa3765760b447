"""On a real GPU: streams, events, the allocator, page-locked RAM. Bitwise against the same model kept on the device."""

from __future__ import annotations

import copy
import gc
import importlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from lib_async_mover import Mover, attach, detach
from lib_async_mover.bench.inputs import make_inputs
from lib_async_mover.bench.shapes import SHAPES
from lib_async_mover.bench.weights import random_unet, weight_bytes
from lib_async_mover.device.accelerator import AcceleratorBackend
from lib_async_mover.device.backend import Backend, Copy, Done
from lib_async_mover.memory.pinning import ledger
from lib_async_mover.plan.workload import MIB
from tests.pair import replan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GIB = 1 << 30
POISON = 0xFF  # NaN in every float format


class PoisoningBackend(AcceleratorBackend):
    """Fills memory with NaN when it is taken, and a slot when it is released: what is read before its copy shows, and
    so does a copy that did not wait for the slot's last reader."""

    def memory_taken(self, raw: torch.Tensor) -> None:
        raw.fill_(POISON)

    def release(self, copy: Copy) -> Done:
        copy.target.fill_(POISON)
        return super().release(copy)


class Case:
    """SD1.5's or SDXL's UNet streamed, and what the same UNet gives when it stays on the device."""

    def __init__(self, name: str = "sd15", size_px: int = 256) -> None:
        self.device = torch.device("cuda")
        self.unet: nn.Module = random_unet(SHAPES[name], self.device, torch.float16, 0)
        self.inputs = [make_inputs(SHAPES[name], 2, size_px, self.device, torch.float16, seed) for seed in (1, 2, 3)]
        self.resident: nn.Module | None = copy.deepcopy(self.unet).to(self.device)
        self.expected = [inputs.run(self.resident).cpu() for inputs in self.inputs]

    def drop_resident(self) -> None:
        self.resident = None
        gc.collect()
        torch.cuda.empty_cache()

    def attach(self, share: float, backend: Backend | None = None) -> Mover:
        """With a buffer of that share of the weights."""
        return attach(self.unet, self.device, share * weight_bytes(self.unet) / MIB, backend=backend)

    def check(self, rounds: int = 1) -> None:
        """Back to back, so that nothing waits and hides a race; then one by one."""
        for _ in range(rounds):
            given = [inputs.run(self.unet) for inputs in self.inputs * 2]
            for output, expected in zip(given, self.expected * 2, strict=True):
                assert torch.equal(output.cpu(), expected)
        assert all(parameter.device.type == "cpu" for parameter in self.unet.parameters())

    def settle(self, mover: Mover) -> None:
        for _ in range(30):
            self.check()
            torch.cuda.synchronize()
            if mover.settled:
                return
        raise AssertionError("the plan never settled")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Not here: drawing SDXL's weights takes all there are."""


@pytest.fixture(scope="module")
def shared_case() -> Case:
    torch.backends.cudnn.benchmark = False
    with torch.no_grad():
        return Case()


@pytest.fixture
def case(shared_case: Case) -> Iterator[Case]:
    yield shared_case
    detach(shared_case.unet)
    torch.cuda.synchronize()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 1.1])
def test_poisoned_slots(case: Case, share: float) -> None:
    case.settle(case.attach(share, PoisoningBackend(case.device)))
    case.check(3)


@pytest.mark.parametrize("gbps", [2.0, 12.0])
def test_a_slow_bus(case: Case, gbps: float) -> None:
    throttle = importlib.import_module("lib_async_mover.bench.throttle")
    mover = case.attach(0.3, throttle.throttled_backend(case.device, gbps))
    case.settle(mover)
    case.check(2)
    assert mover.stats()["h2d_gbps"] == pytest.approx(gbps, rel=0.15)


def test_a_slow_bus_and_poisoned_slots(case: Case) -> None:
    case.settle(case.attach(0.3, PoisoningBackend(case.device, lambda count: torch.cuda._sleep(count // 8))))
    case.check(3)


def test_pageable_weights_go_through_the_stager(case: Case) -> None:
    mover = attach(case.unet, case.device, 0.3 * weight_bytes(case.unet) / MIB, pin_limit_mb=600)
    case.settle(mover)
    case.check(2)
    stats = mover.stats()
    assert 0 < stats["pinned_mib"] <= 600 < stats["pageable_mib"]


def test_a_token_per_copy(case: Case) -> None:
    """Of two copies of one unit in flight, whoever waits for the second sees the second."""
    backend = AcceleratorBackend(case.device, lambda count: torch.cuda._sleep(20_000_000))
    sources = [torch.full((1 << 20,), value, dtype=torch.uint8).pin_memory() for value in (1, 2)]
    slot = torch.zeros(1 << 20, dtype=torch.uint8, device=case.device)
    backend.use_current_stream()
    backend.fence_copies()
    first, second = (backend.copy(source, slot, True, None) for source in sources)
    assert first is not second and first.ready is not second.ready
    backend.wait_for_copy(second)
    assert slot.eq(2).all()
    backend.close()


@pytest.mark.parametrize("pinned", [True, False])
def test_a_copy_that_cannot_be_issued_is_raised_by_its_wait(case: Case, pinned: bool) -> None:
    def fail(count: int) -> None:
        raise RuntimeError("the bus is gone")

    backend = AcceleratorBackend(case.device, fail)
    source, slot = torch.zeros(64, dtype=torch.uint8), torch.zeros(64, dtype=torch.uint8, device=case.device)
    with pytest.raises(RuntimeError, match="the bus is gone"):
        backend.wait_for_copy(backend.copy(source.pin_memory() if pinned else source, slot, pinned, None))
    backend.close()


def test_nothing_in_a_step_waits_for_the_device(case: Case) -> None:
    case.settle(case.attach(0.3))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for inputs in case.inputs * 4:
            inputs.run(case.unet)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    case.check()


def test_pages_are_locked_exactly_and_given_back(case: Case) -> None:
    before = ledger.pinned_bytes
    mover = attach(case.unet, case.device, 256)
    case.check(2)
    taken = ledger.pinned_bytes - before
    assert weight_bytes(case.unet) <= taken <= 1.02 * weight_bytes(case.unet)
    assert mover.stats()["pinned_mib"] == pytest.approx(taken / MIB)
    detach(case.unet)
    assert ledger.pinned_bytes == before
    torch.zeros(1, device="cuda") + 1  # a sticky error of the driver would show here


def test_the_arena_is_the_whole_cost_and_release_gives_it_back(case: Case) -> None:
    held = torch.cuda.memory_allocated()
    activations = 400 * MIB  # more than a forward of this size needs, and less than a second arena would
    mover = attach(case.unet, case.device, 512)
    for _ in range(5):
        torch.cuda.reset_peak_memory_stats()
        case.check()
        assert torch.cuda.max_memory_allocated() - held <= 512 * MIB + activations
        assert torch.cuda.memory_allocated() - held <= 512 * MIB + MIB
        mover.release()
        assert torch.cuda.memory_allocated() - held <= MIB
        # Whoever gets that memory next may write to it at once, while copies may still be in flight.
        torch.empty(512 * MIB, dtype=torch.uint8, device="cuda").fill_(POISON)


def edit(leaf: nn.Module) -> None:
    leaf.weight += 0.01


def to_and_fro(leaf: nn.Module) -> None:
    leaf.to(torch.float32)
    leaf.to(torch.float16)


def before_it_computes(work: Callable[[nn.Module], object]) -> Callable:
    """A forward pre-hook that leaves the arguments alone."""

    def hook(leaf: nn.Module, args: tuple) -> None:
        work(leaf)

    return hook


@pytest.mark.parametrize("share", [0.3, 1.1])
@pytest.mark.parametrize("change", [edit, to_and_fro])
def test_an_edit_inside_a_forward_like_a_lora(case: Case, change: Callable, share: float) -> None:
    case.settle(case.attach(share))
    assert case.resident is not None
    names = ["input_blocks.1.1.transformer_blocks.0.attn1.to_q", "output_blocks.11.0.in_layers.2", "out.2"]
    backups = {name: case.unet.get_submodule(name).weight.detach().clone() for name in names}

    def during(work: Callable[[nn.Module, str], object]) -> list[torch.Tensor]:
        results = []
        for unet in (case.unet, case.resident):
            handles = [
                unet.get_submodule(name).register_forward_pre_hook(
                    before_it_computes(lambda leaf, name=name: work(leaf, name))  # type: ignore[misc]
                )
                for name in names
            ]
            results.append(case.inputs[0].run(unet).cpu())
            for handle in handles:
                handle.remove()
        return results

    ours, theirs = during(lambda leaf, name: change(leaf))
    assert torch.equal(ours, theirs)
    assert torch.equal(case.inputs[1].run(case.unet).cpu(), case.inputs[1].run(case.resident).cpu())
    during(lambda leaf, name: leaf.weight.copy_(backups[name]))
    case.check(2)


@pytest.mark.parametrize("share", [0.05, 0.6])
def test_weights_read_by_to_before_their_layer_s_turn(case: Case, share: float) -> None:
    """sd-webui-controlnet's control-LoRA runs inside the UNet's forward, and its layers take the UNet's own weights."""
    layers = [module for module in case.unet.modules() if isinstance(module, nn.Linear)][::30]
    probes = [torch.ones(1, layer.in_features, device=case.device, dtype=torch.float16) for layer in layers]
    truths = [nn.functional.linear(x, layer.weight.to(x)) for x, layer in zip(probes, layers, strict=True)]
    forward, found = case.unet.forward, []

    def controlled(*args, **kwargs):
        found.append([nn.functional.linear(x, layer.weight.to(x)) for x, layer in zip(probes, layers, strict=True)])
        return forward(*args, **kwargs)

    mover = case.attach(share, PoisoningBackend(case.device))
    case.unet.forward = controlled
    try:
        case.check(4)
    finally:
        del case.unet.forward
    assert all(torch.equal(one, truth) for outs in found for one, truth in zip(outs, truths, strict=True))
    assert mover.stats()["bytes_per_step"] > 0, "nothing stands because of it"


def test_an_edit_between_forwards_while_copies_are_in_flight(case: Case) -> None:
    """The unit's first copy is still in flight when the second one is issued: the edit must not be lost."""
    assert case.resident is not None
    case.settle(case.attach(0.3, PoisoningBackend(case.device, lambda count: torch.cuda._sleep(count // 8))))
    leaves = [unet.get_submodule("input_blocks.0.0") for unet in (case.unet, case.resident)]
    backup = leaves[0].weight.detach().clone()
    for factor in (1.5, 0.5, 2.0):
        for leaf in leaves:
            leaf.weight.mul_(factor)
        for inputs in case.inputs:
            assert torch.equal(inputs.run(case.unet).cpu(), inputs.run(case.resident).cpu())
    for leaf in leaves:
        leaf.weight.copy_(backup)
    case.check(2)


def test_exceptions_in_the_middle(case: Case) -> None:
    case.settle(case.attach(0.3, PoisoningBackend(case.device)))

    def fail(module: nn.Module, args: tuple) -> None:
        raise torch.cuda.OutOfMemoryError("an activation")

    for name in ("input_blocks.4", "middle_block.1", "output_blocks.8.0.out_layers.3"):
        handle = case.unet.get_submodule(name).register_forward_pre_hook(fail)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            case.inputs[0].run(case.unet)
        handle.remove()
        assert all(parameter.device.type == "cpu" for parameter in case.unet.parameters())
        case.check()


def test_two_models_and_two_streams(case: Case) -> None:
    assert case.resident is not None
    other = copy.deepcopy(case.resident).to("cpu")
    try:
        movers = [attach(unet, case.device, 200) for unet in (case.unet, other)]
        stream = torch.cuda.Stream()
        for i in range(12):
            a = case.inputs[0].run(case.unet)
            with torch.cuda.stream(stream):
                stream.wait_stream(torch.cuda.default_stream())
                b = case.inputs[1].run(other if i % 2 else case.unet)
            torch.cuda.default_stream().wait_stream(stream)
            assert torch.equal(a.cpu(), case.expected[0]) and torch.equal(b.cpu(), case.expected[1])
            if i == 6:
                movers[0].release()
    finally:
        detach(other)


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="needs float8")
def test_fp8_storage(case: Case) -> None:
    """The host stores Linear and Conv2d in float8 and casts a leaf inside its forward, as `Module.to` does."""
    assert case.resident is not None
    narrow = [copy.deepcopy(case.resident) for _ in range(2)]
    for unet in narrow:
        for leaf in unet.modules():
            if isinstance(leaf, (nn.Linear, nn.Conv2d)):
                leaf.to(torch.float8_e4m3fn)
                plain = leaf.forward

                def forward(x: torch.Tensor, leaf: nn.Module = leaf, plain: Callable = plain) -> torch.Tensor:
                    leaf.to(torch.float16)
                    try:
                        return plain(x)
                    finally:
                        leaf.to(torch.float8_e4m3fn)

                leaf.forward = forward
    # A closure still calls the leaf it was made for, so each UNet is only ever its own.
    ours, theirs = narrow
    held = torch.cuda.memory_allocated()
    attach(ours, case.device, 200)
    try:
        for inputs in case.inputs * 4:
            assert torch.equal(inputs.run(ours).cpu(), inputs.run(theirs).cpu())
        assert torch.cuda.memory_allocated() - held < 250 * MIB
    finally:
        detach(ours)


@pytest.mark.parametrize(("name", "size_px", "budget_mb", "limit_gib"), [("sd15", 512, 256, 2), ("sdxl", 1024, 512, 4)])
def test_a_small_card(name: str, size_px: int, budget_mb: int, limit_gib: int) -> None:
    small = Case(name, size_px)
    small.drop_resident()
    total = torch.cuda.get_device_properties(0).total_memory
    held = torch.cuda.memory_reserved()  # by other tests' models
    torch.cuda.set_per_process_memory_fraction((held + limit_gib * GIB) / total)
    try:
        mover = attach(small.unet, small.device, budget_mb)
        small.settle(mover)
        small.check(2)
        # A buffer that does not fit is made smaller, and the forward goes on.
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((held + 0.75 * limit_gib * GIB) / total)
        attach(small.unet, small.device, 100 * 1024)
        small.check()
        assert mover.stats()["arena_mib"] < limit_gib * 1024
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        detach(small.unet)


def test_steps_overlap_copies_with_compute(case: Case) -> None:
    """The profiler's own timeline: most of the copied time lies beside kernels of the compute stream."""
    from torch.profiler import ProfilerActivity, profile

    case.settle(case.attach(0.3))
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as record:
        for inputs in case.inputs:
            inputs.run(case.unet)
        torch.cuda.synchronize()
    labels = {event.key for event in record.key_averages()}
    assert {f"async_lowvram::{name}" for name in ("copy", "wait", "bind")} <= labels
    spans = [
        (event.time_range.start, event.time_range.end, "Memcpy HtoD" in event.name)
        for event in record.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    copies = [(start, end) for start, end, is_copy in spans if is_copy and end - start > 100]
    kernels = sorted((start, end) for start, end, is_copy in spans if not is_copy)
    assert copies and kernels
    covered = sum(max(0.0, min(end, stop) - max(start, begin)) for start, end in copies for begin, stop in kernels)
    assert covered > 0.2 * sum(end - start for start, end in copies)


def test_from_plan_to_plan(case: Case) -> None:
    mover = case.attach(0.5, PoisoningBackend(case.device))
    case.check()
    for seed in range(4):
        replan(mover, seed)
        case.check(2)


def test_the_reference_tells_inputs_apart(case: Case) -> None:
    assert not torch.equal(case.inputs[0].x, case.inputs[1].x)
    assert not torch.equal(case.expected[0], case.expected[1])
    assert all(torch.isfinite(output).all() for output in case.expected)
