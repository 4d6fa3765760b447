"""Laid into the webui as an extension: breaks the engine while it runs, and mends it again."""

from __future__ import annotations

import sys
from typing import Any

from modules import script_callbacks

_broken: list[tuple[Any, str, Any]] = []


def put(owner: Any, name: str, value: Any) -> None:
    _broken.append((owner, name, vars(owner)[name]))
    setattr(owner, name, value)


def engine(name: str) -> Any:
    return sys.modules[f"lib_async_mover.{name}"]


def no_room() -> None:
    """The device refuses every buffer."""
    error = engine("errors").ArenaAllocationError

    def refuse(*_: Any) -> None:
        raise error("no room")

    put(engine("memory.arena").Arena, "allocate", refuse)


def a_bug(*_: Any, **__: Any) -> None:
    raise ZeroDivisionError("a bug")


def backend() -> type:
    """Of the models that stream now."""
    return type(engine("webui.host.conversion").CONVERSIONS.movers()[0].backend)


FAULTS = {
    "no room": no_room,
    "a bug before a forward": lambda: put(backend(), "use_current_stream", a_bug),
    "a bug in a forward": lambda: put(backend(), "wait_for_copy", a_bug),
    "a bug after a forward": lambda: put(engine("run.mover").Mover, "leave_forward", a_bug),
}


def routes(_: Any, app: Any) -> None:
    @app.post("/probe/fault")
    def fault(body: dict) -> dict:
        while _broken:
            owner, name, value = _broken.pop()
            setattr(owner, name, value)
        if body["kind"]:
            FAULTS[body["kind"]]()
        return {}


script_callbacks.on_app_started(routes)
