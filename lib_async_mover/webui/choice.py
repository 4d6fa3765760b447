"""What the user chose: on the page, in the settings, in an API request, or as a value of an X/Y/Z plot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lib_async_mover.webui.logs import logger
from lib_async_mover.webui.state import STATE, Wanted

ENABLED_OPTION = "async_lowvram_enabled"
BUFFER_OPTION = "async_lowvram_buffer_mb"
REMEMBER_OPTION = "async_lowvram_remember"
ALL_OPTION = "async_lowvram_all_stages"
PIN_OPTION = "async_lowvram_pin_limit_mb"
INTERVAL_OPTION = "async_lowvram_interval_s"

MAX_BUFFER_MB = 8192  # of the slider; the API takes more
BUFFER_STEP_MB = 16
AXIS_ATTRIBUTE = "async_lowvram_buffer_mb"  # set on `p` by the X/Y/Z plot


@dataclass(frozen=True)
class Choice:
    """`buffer_mb` = 0 is auto."""

    enabled: bool = False
    buffer_mb: int = 0


class Chosen:
    """The choice that stands on the page, in both tabs. One per process: a reload of the page finds it again."""

    def __init__(self) -> None:
        self.choice: Choice | None = None

    def get(self) -> Choice:
        if self.choice is None:
            self.choice = Choice(STATE.flag or bool(option(ENABLED_OPTION, False)), size_mb(option(BUFFER_OPTION, 0)))
        return self.choice

    def set(self, choice: Choice) -> None:
        self.choice = choice


CHOSEN = Chosen()


def option(key: str, default: Any) -> Any:
    """A setting; the default before the settings know it."""
    from modules import shared

    return getattr(shared.opts, key, default)


def size_mb(value: Any) -> int:
    """A size as the slider could give it; nonsense is auto (0)."""
    try:
        size = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return 0
    return max(0, size)


def arguments(p: Any, args: tuple[Any, ...]) -> tuple[Any, Any]:
    """(enabled, buffer_mb) for one generation, from the script's arguments; (None, None) leaves what stands.

    The first argument may be all of them as one dictionary: {"enabled": true, "buffer_mb": 512}. What it leaves out
    is the page's choice. A value of the X/Y/Z plot goes before both; below 0 it means off.
    """
    axis = getattr(p, AXIS_ATTRIBUTE, None)
    if axis is not None:
        return axis >= 0, max(0, axis)
    if not args:
        return None, None
    if isinstance(args[0], dict):
        standing = CHOSEN.get()
        return args[0].get("enabled", True), args[0].get("buffer_mb", standing.buffer_mb)
    return args[0], (args[1] if len(args) > 1 else CHOSEN.get().buffer_mb)


def remember(choice: Choice) -> None:
    """The page's choice changed: it stands from now on, and, if the user wants that, after a restart."""
    from modules import shared

    CHOSEN.set(choice)
    if not option(REMEMBER_OPTION, True):
        return
    try:
        changed = shared.opts.set(ENABLED_OPTION, choice.enabled, run_callbacks=False)
        changed |= shared.opts.set(BUFFER_OPTION, choice.buffer_mb, run_callbacks=False)
        if changed:
            shared.opts.save(shared.config_filename)
    except (AssertionError, RuntimeError, KeyError, OSError) as error:  # --freeze-settings; a read-only folder
        logger.debug("the choice is not kept over a restart: %s", error)


def follow_settings() -> None:
    """The settings page changed what the accordion starts with."""
    CHOSEN.choice = None


def take_defaults() -> None:
    """Once per process, when the script loads: what streams before the first image is what the settings say."""
    if CHOSEN.choice is None:
        choice = CHOSEN.get()
        STATE.wanted = Wanted(choice.enabled, choice.buffer_mb)
