"""What was done to one model, and what is needed to undo it. Holds parts of the model, never the model itself."""

from __future__ import annotations

from collections.abc import Callable

from lib_async_mover.webui import ahead
from lib_async_mover.webui.guard import Guard
from lib_async_mover.webui.part import Part
from lib_async_mover.webui.residency import Stage
from lib_async_mover.webui.stock import Hook, Layout, Placed, Redirected


class Conversion:
    """One per model that streams."""

    def __init__(self, name: str, found: Layout, taken: list[Placed], vram_mb: float) -> None:
        """
        Args:
            found: how stock held the UNet.
            taken: stock's hooks that were taken off it.
        """
        self.name = name
        self.found = found
        self.taken = taken
        self.vram_mb = vram_mb
        self.stages: list[Stage] = []
        self.redirected: list[Redirected] = []
        self.guards: list[Guard] = []

    @property
    def hook(self) -> Hook | None:
        """Stock's closure for this model, if stock ever set it up."""
        return self.taken[0].hook if self.taken else None

    @property
    def parts(self) -> list[Part]:
        return [part for stage in self.stages for part in stage.parts]

    def connect(self) -> None:
        """Who uploads whom ahead: conditioning the UNet, the UNet's last step the VAE's decoder."""
        parts = {part.root.key: part for part in self.parts}
        unet, decoder = parts["unet"], parts.get("vae_decoder")
        for stage in self.stages:
            if stage.name == "unet":
                stage.before = _decoder_in_last_step(decoder)
            elif stage.name.startswith("text"):
                others = [other for other in self.stages if other.name.startswith("text") and other is not stage]
                stage.after = _unet_beside(unet, others)


def _decoder_in_last_step(decoder: Part | None) -> Callable[[], None]:
    def before() -> None:
        if decoder is not None and ahead.last_step():
            ahead.upload(decoder)
        else:
            ahead.drop()

    return before


def _unet_beside(unet: Part, others: list[Stage]) -> Callable[[], None]:
    def after() -> None:
        needed = max((sum(part.mover.wanted_bytes for part in stage.parts) for stage in others), default=0)
        ahead.upload(unet, beside_bytes=needed)

    return after
