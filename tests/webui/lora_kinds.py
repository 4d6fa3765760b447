"""What the host's Lora extension loads for one layer, by the name of the kind: tensors for a weight of a given shape.

Which tensors make a kind is told by `extensions-builtin/Lora/network_*.py` of the host.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from tensor_file import Dice, Values, scalar

RANK = 2
Tensors = dict[str, Values]


def plain(dice: Dice, shape: list[int]) -> Tensors:
    out, into, *kernel = shape
    return {
        "lora_down.weight": dice.normal(RANK, into, *kernel),
        "lora_up.weight": dice.normal(out, RANK, *(1 for _ in kernel)),
        "alpha": scalar(RANK),
    }


def with_bias(dice: Dice, shape: list[int]) -> Tensors:
    return plain(dice, shape) | {"bias": dice.normal(*shape, scale=0.1)}


def weight_decomposed(dice: Dice, shape: list[int]) -> Tensors:
    return plain(dice, shape) | {"dora_scale": dice.normal(1, shape[1], *(1 for _ in shape[2:]), mean=2.0)}


def tucker(dice: Dice, shape: list[int]) -> Tensors:
    """A convolution in three factors."""
    out, into, *kernel = shape
    if prod(kernel) == 1:
        return plain(dice, shape)
    return {
        "lora_down.weight": dice.normal(RANK, into, 1, 1),
        "lora_mid.weight": dice.normal(RANK, RANK, *kernel),
        "lora_up.weight": dice.normal(out, RANK, 1, 1),
        "alpha": scalar(RANK),
    }


def full(dice: Dice, shape: list[int]) -> Tensors:
    """Weight and bias."""
    return {"diff": dice.normal(*shape, scale=0.2), "diff_b": dice.normal(shape[0], scale=0.2)}


def loha(dice: Dice, shape: list[int]) -> Tensors:
    out, into, *kernel = shape
    return {
        "hada_w1_a": dice.normal(out, RANK), "hada_w1_b": dice.normal(RANK, into * prod(kernel)),
        "hada_w2_a": dice.normal(out, RANK), "hada_w2_b": dice.normal(RANK, into * prod(kernel)),
        "alpha": scalar(2 * RANK),
    }  # fmt: skip


def loha_tucker(dice: Dice, shape: list[int]) -> Tensors:
    out, into, *kernel = shape
    if prod(kernel) == 1:
        return loha(dice, shape)
    return {
        f"hada_{name}": dice.normal(*extents)
        for number in "12"
        for name, extents in (
            (f"t{number}", (RANK, RANK, *kernel)), (f"w{number}_a", (RANK, out)), (f"w{number}_b", (RANK, into)),
        )
    } | {"alpha": scalar(RANK)}  # fmt: skip


def lokr(dice: Dice, shape: list[int]) -> Tensors:
    out, into, *kernel = shape
    tensors = {"lokr_w1": dice.normal(2, 2), "alpha": scalar(RANK)}
    if kernel:
        return tensors | {"lokr_w2": dice.normal(out // 2, into // 2, *kernel)}
    return tensors | {"lokr_w2_a": dice.normal(out // 2, RANK), "lokr_w2_b": dice.normal(RANK, into // 2)}


def oft(dice: Dice, shape: list[int]) -> Tensors:
    """kohya's."""
    return {"oft_blocks": dice.normal(4, shape[0] // 4, shape[0] // 4), "alpha": scalar(0.01)}


def oft_diag(dice: Dice, shape: list[int]) -> Tensors:
    """LyCORIS's older one."""
    return {"oft_diag": dice.normal(shape[0] // 4, 4, 4)}


def boft(dice: Dice, shape: list[int]) -> Tensors:
    return {"oft_blocks": dice.normal(2, shape[0] // 4, 4, 4, scale=0.2)}


def ia3(dice: Dice, shape: list[int]) -> Tensors:
    return {"weight": dice.normal(shape[0]), "on_input": scalar(0)}


def ia3_on_input(dice: Dice, shape: list[int]) -> Tensors:
    return {"weight": dice.normal(shape[1]), "on_input": scalar(1)}


def glora(dice: Dice, shape: list[int]) -> Tensors:
    out, into = shape
    return {
        "a1.weight": dice.normal(RANK, into), "a2.weight": dice.normal(into, RANK),
        "b1.weight": dice.normal(RANK, into), "b2.weight": dice.normal(out, RANK), "alpha": scalar(RANK),
    }  # fmt: skip


def norm(dice: Dice, shape: list[int]) -> Tensors:
    return {"w_norm": dice.normal(*shape), "b_norm": dice.normal(*shape)}


# The layers a kind is for, by the dimensions of their weight: norms have 1, linear layers 2, convolutions 4.
KINDS: dict[str, tuple[Callable[[Dice, list[int]], Tensors], set[int]]] = {
    "plain": (plain, {2, 4}),
    "bias": (with_bias, {2, 4}),
    "dora": (weight_decomposed, {2, 4}),
    "tucker": (tucker, {2, 4}),
    "full": (full, {2, 4}),
    "loha": (loha, {2, 4}),
    "loha_tucker": (loha_tucker, {2, 4}),
    "lokr": (lokr, {2, 4}),
    "oft": (oft, {2, 4}),
    "oft_diag": (oft_diag, {2, 4}),
    "boft": (boft, {2, 4}),
    "ia3": (ia3, {2}),
    "ia3_on_input": (ia3_on_input, {2}),
    "glora": (glora, {2}),
    "norm": (norm, {1}),
}
