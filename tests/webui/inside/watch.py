"""Laid into the webui as an extension: writes down, while each stage computes, whose weights are on the device."""

from __future__ import annotations

import sys
from typing import Any

from modules import script_callbacks
from torch import nn

seen: list[dict[str, Any]] = []


leaves: dict[int, tuple[nn.Module, nn.Module | None]] = {}  # by id of a stage's module


def watch(module: nn.Module, _args: Any) -> None:
    adapter = sys.modules.get("lib_async_mover.webui.host.conversion")
    if adapter is None or next(module.children(), None) is not None:
        return
    for _, conversion in adapter.CONVERSIONS.items():
        for stage in conversion.stages:
            for component in stage.components:
                if last_leaf(component.module) is module:
                    held = [other.key for other in conversion.components if other.mover.stats()["arena_mib"]]
                    seen.append({"runs": component.key, "held": held, "in_gpu": stage.on_gpu})


def last_leaf(module: nn.Module) -> nn.Module | None:
    known = leaves.get(id(module))
    if known is None or known[0] is not module:
        found = [part for part in module.modules() if next(part.parameters(recurse=False), None) is not None]
        known = leaves[id(module)] = module, found[-1] if found else None
    return known[1]


def routes(_: Any, app: Any) -> None:
    nn.modules.module.register_module_forward_pre_hook(watch)

    @app.post("/probe/seen")
    def take() -> list:
        taken = list(seen)
        seen.clear()
        return taken


script_callbacks.on_app_started(routes)
