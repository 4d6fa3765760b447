"""What of a model streams: its stages, and in each the modules that are moved as one. Told by structure, not by name
or class, for the model as it is before the host's hijack and after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from lib_async_mover.leaf import find_leaves

SMALL_BYTES = 4 << 20  # what lies beside the roots of a stage, up to this, stays on the GPU for good


class Root(NamedTuple):
    """A module that streams as one. It is entered by a call, or else by these methods of `owner`."""

    key: str
    module: nn.Module
    owner: nn.Module | None = None
    methods: tuple[str, ...] = ()


class Anatomy(NamedTuple):
    """One stage: what is on the GPU together."""

    name: str
    roots: tuple[Root, ...]


def text_stages(sd_model: Any) -> list[Anatomy]:
    """The text encoders, together where stock has them on the GPU together: SD1's and SD2's one, SDXL's two, while
    SD3's take turns."""
    encoder = getattr(sd_model, "cond_stage_model", None)
    conditioner = getattr(sd_model, "conditioner", None)
    if encoder is not None and hasattr(encoder, "medvram_modules"):
        entries = [getattr(entry, "module", entry) for entry in encoder.medvram_modules()]
        groups = [[Root("text", module)] for module in entries if isinstance(module, nn.Module)]
    elif conditioner is not None:
        groups = [[_text_root(embedder) for embedder in conditioner.embedders]]
    else:
        groups = [[_text_root(encoder)]] if isinstance(encoder, nn.Module) else []
    return list(_numbered(groups))


def vae_stage(sd_model: Any) -> Anatomy | None:
    """Encoder and decoder apart, since an image needs one of them at a time; else the VAE as a whole."""
    vae = getattr(sd_model, "first_stage_model", None)
    if not isinstance(vae, nn.Module):
        return None
    halves = [Root(f"vae_{name}", getattr(vae, name)) for name in ("encoder", "decoder") if _streams(vae, name)]
    beside = _bytes(vae) - sum(_bytes(root.module) for root in halves)
    if halves and beside <= SMALL_BYTES:
        return Anatomy("vae", tuple(halves))
    if not _has_leaves(vae):
        return None
    return Anatomy("vae", (Root("vae", vae, vae, ("encode", "decode")),))


def unet_stage(sd_model: Any) -> Anatomy:
    """The UNet, or what stands in its place (SD3's MMDiT)."""
    return Anatomy("unet", (Root("unet", sd_model.model.diffusion_model),))


def related(module: nn.Module, anatomy: Anatomy) -> bool:
    """Is `module` a root of the stage, above one, or below one?"""
    return any(
        module is root.module
        or any(part is root.module for part in module.modules())
        or any(part is module for part in root.module.modules())
        for root in anatomy.roots
    )


def _text_root(embedder: nn.Module) -> Root:
    inner = getattr(embedder, "wrapped", embedder)  # the host's hijack wraps it
    model, transformer = getattr(inner, "model", None), getattr(inner, "transformer", None)
    if isinstance(model, nn.Module) and hasattr(inner, "encode_with_transformer"):
        return Root("text", model, inner, ("encode_with_transformer",))  # OpenCLIP: the model itself is never called
    if isinstance(transformer, nn.Module):
        return Root("text", transformer)
    return Root("text", inner)


def _numbered(groups: list[list[Root]]) -> Iterator[Anatomy]:
    count = 0
    for group in groups:
        roots = []
        for root in group:
            if _has_leaves(root.module):
                count += 1
                roots.append(root._replace(key="text" if count == 1 else f"text_{count}"))
        if roots:
            yield Anatomy(roots[0].key, tuple(roots))


def _streams(vae: nn.Module, name: str) -> bool:
    half = getattr(vae, name, None)
    return isinstance(half, nn.Module) and _has_leaves(half)


def _has_leaves(module: nn.Module) -> bool:
    return bool(find_leaves(module)[0])


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*module.parameters(), *module.buffers()])
