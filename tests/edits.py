"""What others do to a module's weights: edits of a leaf inside its forward, and changes of a model between forwards."""

from __future__ import annotations

import torch
from torch import nn

from tests.small import Net, make

# Inside a forward, of a leaf that is about to compute


def add(leaf: nn.Module) -> None:
    leaf.weight += 0.25


def add_bias(leaf: nn.Module) -> None:
    if leaf.bias is None:
        leaf.bias = nn.Parameter(torch.full((leaf.weight.shape[0],), 0.5, device=leaf.weight.device))


def drop_bias(leaf: nn.Module) -> None:
    leaf.bias = None


def round_trip(leaf: nn.Module) -> None:
    leaf.to(torch.float64).to(torch.float32)


def edit_in_double(leaf: nn.Module) -> None:
    leaf.to(torch.float64)
    leaf.weight += 0.125
    leaf.to(torch.float32)


def replace(leaf: nn.Module) -> None:
    leaf.weight = nn.Parameter(leaf.weight * 0.5)


def swap_data_inside(leaf: nn.Module) -> None:
    leaf.weight.data = leaf.weight.data.clone()
    leaf.weight.mul_(0.5)


EDITS = [add, add_bias, drop_bias, round_trip, edit_in_double, replace, swap_data_inside]


# Between forwards, of a model. Each can be done again and again.


def reload_in_place(model: Net) -> None:
    model.load_state_dict({key: value / 2 for key, value in model.state_dict().items()})


def reload_by_assignment(model: Net) -> None:
    model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, assign=True)


def there_and_back(model: Net) -> None:
    model.to(torch.float64).to(torch.float32)


def to_cpu(model: Net) -> None:
    model.to("cpu")


def swap_data(model: Net) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.75


def scale_one(model: Net) -> None:
    next(model.blocks[3].parameters()).mul_(-1)


def scale_buffer(model: Net) -> None:
    model.table.mul_(-1)


def replace_buffer(model: Net) -> None:
    model.table = model.table * 0.5


def new_bias(model: Net) -> None:
    model.narrow.bias = nn.Parameter(torch.full((32,), 0.5))


def no_bias(model: Net) -> None:
    model.out.bias = None


def freeze(model: Net) -> None:
    model.requires_grad_(False)


def new_module(model: Net) -> None:
    torch.manual_seed(3)
    model.blocks[1].late = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 32))


def other_module(model: Net) -> None:
    """A leaf that was an adapter's is gone, and the model's own kind is back."""
    model.blocks[1].late = make(seed=7).blocks[1].late


def inserted_block(model: Net) -> None:
    torch.manual_seed(3)
    model.blocks.insert(5, nn.Linear(32, 32))
    model.path = range(len(model.blocks))


def removed_block(model: Net) -> None:
    if len(model.blocks) > 5:
        del model.blocks[5]
    model.path = range(len(model.blocks))


def wrapped_block(model: Net) -> None:
    model.blocks[3] = nn.Sequential(model.blocks[3])


def unwrapped_block(model: Net) -> None:
    if isinstance(model.blocks[3], nn.Sequential):
        model.blocks[3] = model.blocks[3][0]


def parameter_on_a_bare_container(model: Net) -> None:
    model.blocks[0].register_parameter("scale", nn.Parameter(torch.ones(1)))


CHANGES = [
    reload_in_place, reload_by_assignment, there_and_back, to_cpu, swap_data, scale_one, scale_buffer, replace_buffer,
    new_bias, no_bias, freeze, new_module, other_module, inserted_block, removed_block, wrapped_block, unwrapped_block,
    parameter_on_a_bare_container,
]  # fmt: skip
