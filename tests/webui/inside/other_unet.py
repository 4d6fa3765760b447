"""Laid into the webui as an extension: a UNet that the host calls in place of the checkpoint's, as TensorRT's comes."""

from __future__ import annotations

import sys
from typing import Any

from modules import script_callbacks, sd_unet

held: list[float] = []  # MiB of ours on the device, seen from within


class OtherUnet(sd_unet.SdUnet):
    def forward(self, x: Any, timesteps: Any, context: Any, *_: Any, **__: Any) -> Any:
        adapter = sys.modules.get("lib_async_mover.webui.host.conversion")
        movers = adapter.CONVERSIONS.movers() if adapter else []
        held.append(sum(mover.stats()["arena_mib"] or 0 for mover in movers))
        return 0.5 * x + 0.1 * context.mean() * timesteps.reshape(-1, 1, 1, 1).cos()


class OtherOption(sd_unet.SdUnetOption):
    label = "other unet"

    def create_unet(self) -> OtherUnet:
        return OtherUnet()


def routes(_: Any, app: Any) -> None:
    @app.post("/probe/other-unet")
    def take() -> list:
        taken = list(held)
        held.clear()
        return taken


script_callbacks.on_list_unets(lambda options: options.append(OtherOption()))
script_callbacks.on_app_started(routes)
