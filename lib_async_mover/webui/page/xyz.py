"""The axis "[Async lowvram] Buffer size" of the X/Y/Z plot script. A plot over it is a benchmark of this card."""

from __future__ import annotations

from typing import Any

from modules import scripts

from lib_async_mover.webui.host.choice import AXIS_ATTRIBUTE, MAX_BUFFER_MB, MIN_BUFFER_MB
from lib_async_mover.webui.page import strings


def add_axis() -> None:
    """Before each build of the page, since the host may have executed xyz_grid.py again. Adds the axis once."""
    grid = next((d.module for d in scripts.scripts_data if d.module.__name__ == "xyz_grid.py"), None)
    options = getattr(grid, "axis_options", None)
    if grid is None or options is None or any(option.label == strings.AXIS for option in options):
        return
    options.append(grid.AxisOption(strings.AXIS, int, _apply, format_value=_format, confirm=_confirm))


def _apply(p: Any, x: int, xs: list[int]) -> None:
    setattr(p, AXIS_ATTRIBUTE, x)


def _format(p: Any, option: Any, x: int) -> str:
    return "Async lowvram: " + ("off" if x < 0 else "auto" if x == 0 else f"{x} MB")


def _confirm(p: Any, xs: list[int]) -> None:
    for x in xs:
        if x not in (-1, 0) and not MIN_BUFFER_MB <= x <= MAX_BUFFER_MB:
            raise RuntimeError(
                f"Async lowvram: {x} is no buffer size. Use {MIN_BUFFER_MB} to {MAX_BUFFER_MB} megabytes, 0 for auto, "
                "-1 for off."
            )
