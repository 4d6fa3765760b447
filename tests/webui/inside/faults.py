"""Laid into the webui as an extension: breaks the engine while it runs, and mends it again."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
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

    def refuse(*_: Any, **__: Any) -> None:
        raise error("no room")

    for name in ("ensure", "__init__"):
        put(engine("loadout").Loadout, name, refuse)


def a_bug(where: str) -> Callable[[], None]:
    """An error that looks as if a line of the engine had raised it."""

    def wrong(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    def put_in() -> None:
        mover = engine("mover")
        code = wrong.__code__.replace(co_filename=mover.__file__)
        put(mover.Mover, where, types.FunctionType(code, {"ZeroDivisionError": ZeroDivisionError}))

    return put_in


FAULTS = {
    "no room": no_room,
    "a bug before a forward": a_bug("_prepare"),
    "a bug in a forward": a_bug("_serve"),
    "a bug after a forward": a_bug("finish"),
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
