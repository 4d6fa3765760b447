"""Laid into the webui as an extension: writes down, while each stage computes, whose weights are on the device."""

from __future__ import annotations

import sys
from typing import Any

from modules import lowvram, script_callbacks
from torch import nn

seen: list[dict[str, Any]] = []


leaves: dict[int, tuple[nn.Module, nn.Module | None]] = {}  # by id of a stage's module


def watch(module: nn.Module, _: Any) -> None:
    package = sys.modules.get("lib_async_mover.webui.state")
    if package is None or next(module.children(), None) is not None:
        return
    for conversion in list(package.STATE.conversions.values()):
        for stage in conversion.stages:
            for part in stage.parts:
                if last_leaf(part.module) is module:
                    held = [p.root.key for p in conversion.parts if p.mover.stats()["arena_mib"]]
                    where = lowvram.module_in_gpu is stage.occupant
                    seen.append({"runs": part.root.key, "held": held, "in_gpu": where})


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
