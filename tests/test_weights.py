"""What anybody may do to the weights, inside a forward and between forwards."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import nn

from tests.conftest import Pair
from tests.small import Net, image, make

WARMTH = [0, 1, 2, 8]  # forwards: never run, traced, packed, profiled
HELD = [(None, 0.9), (None, 1.5)]  # some residents stay bound between forwards, and all leaves


class Edited(Net):
    """Calls ``edit(leaf)`` inside the forward, where a LoRA would: right before a leaf computes."""

    edit: Callable[[nn.Module], None] | None = None

    def __init__(self) -> None:
        super().__init__()
        for module in (self.blocks[2].late, self.embed, self.narrow):
            plain = module.forward

            def forward(x: torch.Tensor, module: nn.Module = module, plain: Callable = plain) -> torch.Tensor:
                if self.edit is not None:
                    self.edit(module)
                return plain(x)

            module.forward = forward


def edited_pair(share: float, warm: int | None) -> Pair:
    pair = Pair(make(Edited), share)
    # deepcopy keeps closures over the first model, so the twin is made by hand
    pair.twin = make(Edited)
    pair.twin.load_state_dict(pair.model.state_dict())
    pair.warm_up(warm)
    return pair


def add(module: nn.Module) -> None:
    module.weight += 0.25


def add_bias(module: nn.Module) -> None:
    if module.bias is None:
        module.bias = nn.Parameter(torch.full((module.out_features,), 0.5, device=module.weight.device))


def drop_bias(module: nn.Module) -> None:
    module.bias = None


def round_trip(module: nn.Module) -> None:
    module.to(torch.float64)
    module.to(torch.float32)


def edit_in_double(module: nn.Module) -> None:
    module.to(torch.float64)
    module.weight += 0.125
    module.to(torch.float32)


def replace(module: nn.Module) -> None:
    module.weight = nn.Parameter(module.weight * 0.5)


def stay_double_and_back(module: nn.Module) -> None:
    module.weight.data = module.weight.data.clone()
    module.weight.data.mul_(1)


EDITS = [add, add_bias, drop_bias, round_trip, edit_in_double, replace, stay_double_and_back]


@pytest.mark.parametrize(("warm", "share"), [*product(WARMTH, [0.15, 0.4, 1.0]), *HELD])
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_inside_a_forward_is_brought_home(edit: Callable, warm: int | None, share: float) -> None:
    pair = edited_pair(share, warm)
    pair.both(lambda model: setattr(model, "edit", edit))
    pair.check(times=1)
    pair.both(lambda model: setattr(model, "edit", None))
    pair.check(times=4)


def test_an_edit_is_written_once_and_undone_once() -> None:
    pair = edited_pair(0.4, 8)
    backup = pair.model.narrow.weight.clone()

    def restore(module: nn.Module) -> None:
        if module.out_features == 32 and module.in_features == 256:
            module.weight.copy_(backup)

    pair.both(lambda model: setattr(model, "edit", lambda m: add(m) if m.weight.shape == backup.shape else None))
    pair.check()
    pair.both(lambda model: setattr(model, "edit", None))
    pair.check(times=2)
    pair.both(lambda model: setattr(model, "edit", lambda m: restore(m) if m.weight.shape == backup.shape else None))
    pair.check()
    assert torch.equal(pair.model.narrow.weight, backup)


def test_an_edit_survives_the_exception_that_follows_it() -> None:
    pair = edited_pair(0.4, 8)

    def edit_and_fail(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight += 1
            raise RuntimeError("cancelled")

    pair.both(lambda model: setattr(model, "edit", edit_and_fail))
    for model in (pair.model, pair.twin):
        with pytest.raises(RuntimeError, match="cancelled"):
            model(image())
    pair.both(lambda model: setattr(model, "edit", None))
    pair.check(times=3)


def reload_in_place(model: nn.Module) -> None:
    model.load_state_dict(make(Net, seed=7).state_dict())


def reload_by_assignment(model: nn.Module) -> None:
    model.load_state_dict(make(Net, seed=7).state_dict(), assign=True)


def there_and_back(model: nn.Module) -> None:
    model.to(torch.float64)
    model.to(torch.float32)


def to_cpu(model: nn.Module) -> None:
    model.to("cpu")


def swap_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 2


def scale_one(model: nn.Module) -> None:
    model.blocks[3].late.weight.mul_(3)


def scale_buffer(model: nn.Module) -> None:
    model.table.mul_(3)


def replace_buffer(model: nn.Module) -> None:
    model.table = model.table * 3


def new_bias(model: nn.Module) -> None:
    model.narrow.bias = nn.Parameter(torch.full((32,), 0.5))


def no_bias(model: nn.Module) -> None:
    model.out.bias = None


def new_module(model: nn.Module) -> None:
    torch.manual_seed(3)
    model.blocks[1].late = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 32))


def injected_block(model: nn.Module) -> None:
    torch.manual_seed(3)
    model.blocks.insert(2, nn.Linear(32, 32))


def removed_block(model: nn.Module) -> None:
    del model.blocks[5]


def parameter_on_a_bare_container(model: nn.Module) -> None:
    model.blocks[0].register_parameter("scale", nn.Parameter(torch.ones(1)))


CHANGES = [
    reload_in_place, reload_by_assignment, there_and_back, to_cpu, swap_data, scale_one, scale_buffer, replace_buffer,
    new_bias, no_bias, new_module, injected_block, removed_block, parameter_on_a_bare_container,
]  # fmt: skip


@pytest.mark.parametrize(("warm", "share"), [*product(WARMTH, [0.3, 1.0]), *HELD])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_forwards(change: Callable, warm: int | None, share: float) -> None:
    pair = Pair(make(), share)
    pair.warm_up(warm)
    pair.mover.synchronize()
    pair.both(change)
    pair.check(times=5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype(dtype: torch.dtype) -> None:
    try:
        make().to(dtype)(image().to(dtype))
    except RuntimeError as error:
        pytest.skip(f"this torch cannot compute with it on a CPU: {error}")
    pair = Pair(make())
    pair.check(times=8)
    pair.both(lambda model: model.to(dtype))
    for i in range(6):
        x = image(i).to(dtype)
        assert torch.equal(pair.model(x), pair.twin(x))
    pair.check_weights()


@pytest.mark.parametrize("frozen", [False, True])
def test_the_kernel_is_the_one_that_the_requires_grad_flag_chooses(frozen: bool) -> None:
    """matmul folds a batch only if its second operand requires grad, and the two ways round differently."""
    pair = Pair(make().to(torch.float64))
    pair.both(lambda model: model.requires_grad_(not frozen))
    for i in range(8):
        x = image(i).double()
        assert torch.equal(pair.model(x), pair.twin(x))
    pair.both(lambda model: model.requires_grad_(frozen))
    for i in range(4):
        x = image(i).double()
        assert torch.equal(pair.model(x), pair.twin(x))


def test_channels_last_is_kept() -> None:
    pair = Pair(make().to(memory_format=torch.channels_last))
    stride = pair.twin.embed.weight.stride()
    assert stride != torch.empty(pair.twin.embed.weight.shape).stride()
    pair.check(times=8)
    assert pair.model.embed.weight.stride() == stride
    pair.both(lambda model: model.to(memory_format=torch.contiguous_format))
    pair.check(times=4)


def test_expanded_and_empty_tensors() -> None:
    class Odd(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("wide_table", torch.randn(1).expand(32))
            self.register_buffer("nothing", torch.empty(0))
            self.out.register_buffer("flag", torch.tensor(True))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.wide_table.sum()

    model = make(Odd)
    pair = Pair(model)
    for i in range(8):
        assert torch.equal(pair.model(image(i)), pair.twin(image(i)))


def test_a_buffer_that_counts_is_written_back() -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.out.register_buffer("calls", torch.zeros(1))
            plain = self.out.forward

            def forward(x: torch.Tensor) -> torch.Tensor:
                self.out.calls += 1
                return plain(x) * self.out.calls

            self.out.forward = forward

    pair = Pair(make(Counting))
    pair.twin = make(Counting)
    pair.check(times=8)
    assert pair.model.out.calls == 8


def test_a_frozen_model_stays_frozen_and_a_parameter_the_same_object() -> None:
    pair = Pair(make().requires_grad_(False))
    before = list(pair.model.parameters())
    pair.check(times=8)
    assert all(now is then for now, then in zip(pair.model.parameters(), before, strict=True))
    assert not any(parameter.requires_grad for parameter in before)


@pytest.mark.parametrize(("warm", "share"), [*product(WARMTH, [0.4]), *HELD])
def test_deep_copies_and_pickles_are_plain(warm: int | None, share: float) -> None:
    pair = Pair(make(), share)
    pair.warm_up(warm)
    clones = [copy.deepcopy(pair.model), pickle.loads(pickle.dumps(pair.model))]
    x = image(4)
    for clone in clones:
        clone.blocks[0].late.weight.zero_()
        clone.load_state_dict(pair.model.state_dict())
        assert torch.equal(clone(x), pair.twin(x))
    pair.check(times=2)


def test_saving_one_tensor_does_not_write_the_whole_store(pair: Pair) -> None:
    weight = pair.model.blocks[0].late.weight
    file = io.BytesIO()
    torch.save(weight, file)
    assert file.getbuffer().nbytes < 2 * weight.numel() * weight.element_size() + 4096


def test_the_new_weights_are_seen_although_the_old_ones_were_prefetched(pair: Pair) -> None:
    pair.mover.prefetch()
    pair.mover.synchronize()
    pair.both(lambda model: model.embed.weight.zero_())
    pair.both(lambda model: model.narrow.weight.mul_(-1))
    pair.check(times=2)


def test_loading_waits_for_what_the_device_still_reads(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    plain = pair.backend.synchronize
    monkeypatch.setattr(pair.backend, "synchronize", lambda: waits.append(plain()))
    pair.both(reload_in_place)
    assert len(waits) == 1
    nn.ModuleList([pair.model]).load_state_dict(nn.ModuleList([pair.twin]).state_dict())
    assert len(waits) == 2, "loading a module that contains it"
    pair.check(times=2)


def test_a_write_through_data_needs_a_refresh(pair: Pair) -> None:
    pair.mover.synchronize()
    pair.both(lambda model: model.embed.weight.data.mul_(2))
    pair.mover.refresh()
    pair.check(times=2)


def test_a_change_during_each_of_many_forwards() -> None:
    pair = edited_pair(0.4, 0)
    dice = torch.Generator().manual_seed(0)
    for i in range(25):
        edit = [*EDITS, None][int(torch.randint(0, len(EDITS) + 1, (), generator=dice))]
        pair.both(lambda model, edit=edit: setattr(model, "edit", edit_if_linear(edit)))
        pair.check(seed=i)


def linear_with(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Calls it, and gives it a new weight while it is there."""
    handle = module.register_forward_pre_hook(lambda module, _: replace(module))
    try:
        return module(x)
    finally:
        handle.remove()


def edit_if_linear(edit: Callable | None) -> Callable | None:
    if edit is None:
        return None
    return lambda module: edit(module) if isinstance(module, nn.Linear) else None
