"""What of a model streams: its stages, and in each the modules that are moved as one. Told by structure, not by name
or class, for the model as it is before the host's hijack and after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from lib_async_mover.memory.leaf import find_leaves

SMALL_BYTES = 4 << 20  # what lies beside the components of a stage, up to this, stays on the GPU for good


class ComponentSpec(NamedTuple):
    """A module that streams as one. It is entered by a call, or else by these methods of `owner`."""

    key: str
    module: nn.Module
    owner: nn.Module | None = None
    methods: tuple[str, ...] = ()


class StageSpec(NamedTuple):
    """What is on the GPU together."""

    name: str
    components: tuple[ComponentSpec, ...]


def text_stages(sd_model: Any) -> list[StageSpec]:
    """The text encoders, together where stock has them on the GPU together: SD1's and SD2's one, SDXL's two, while
    SD3's take turns."""
    encoder = getattr(sd_model, "cond_stage_model", None)
    conditioner = getattr(sd_model, "conditioner", None)
    if encoder is not None and hasattr(encoder, "medvram_modules"):
        entries = [getattr(entry, "module", entry) for entry in encoder.medvram_modules()]
        groups = [[ComponentSpec("text", module)] for module in entries if isinstance(module, nn.Module)]
    elif conditioner is not None:
        groups = [[_text_component(embedder) for embedder in conditioner.embedders]]
    else:
        groups = [[_text_component(encoder)]] if isinstance(encoder, nn.Module) else []
    return list(_numbered(groups))


def vae_stage(sd_model: Any) -> StageSpec | None:
    """Encoder and decoder apart, since an image needs one of them at a time; else the VAE as a whole."""
    vae = getattr(sd_model, "first_stage_model", None)
    if not isinstance(vae, nn.Module):
        return None
    halves = [
        ComponentSpec(f"vae_{name}", getattr(vae, name))
        for name in ("encoder", "decoder")
        if _has_leaves(getattr(vae, name, None))
    ]
    beside = bytes_of(vae) - sum(bytes_of(half.module) for half in halves)
    if halves and beside <= SMALL_BYTES:
        return StageSpec("vae", tuple(halves))
    if not _has_leaves(vae):
        return None
    return StageSpec("vae", (ComponentSpec("vae", vae, vae, ("encode", "decode")),))


def unet_stage(sd_model: Any) -> StageSpec:
    """The UNet, or what stands in its place (SD3's MMDiT)."""
    return StageSpec("unet", (ComponentSpec("unet", sd_model.model.diffusion_model),))


def related(module: nn.Module, stage: StageSpec) -> bool:
    """Is `module` a component of the stage, above one, or below one?"""
    inside = set(module.modules())
    return any(one.module in inside or module in set(one.module.modules()) for one in stage.components)


def bytes_of(module: nn.Module) -> int:
    """Of all its weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*module.parameters(), *module.buffers()])


def _text_component(embedder: nn.Module) -> ComponentSpec:
    inner = getattr(embedder, "wrapped", embedder)  # the host's hijack wraps it
    model, transformer = getattr(inner, "model", None), getattr(inner, "transformer", None)
    if isinstance(model, nn.Module) and hasattr(inner, "encode_with_transformer"):
        # OpenCLIP: the model itself is never called.
        return ComponentSpec("text", model, inner, ("encode_with_transformer",))
    return ComponentSpec("text", transformer if isinstance(transformer, nn.Module) else inner)


def _numbered(groups: list[list[ComponentSpec]]) -> Iterator[StageSpec]:
    count = 0
    for group in groups:
        components = []
        for component in group:
            if _has_leaves(component.module):
                count += 1
                components.append(component._replace(key="text" if count == 1 else f"text_{count}"))
        if components:
            yield StageSpec(components[0].key, tuple(components))


def _has_leaves(module: Any) -> bool:
    return isinstance(module, nn.Module) and bool(find_leaves(module)[0])
