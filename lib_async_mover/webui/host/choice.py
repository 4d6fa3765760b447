"""What the user chose: on the page, in the settings, in an API request, or as a value of an X/Y/Z plot."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modules import shared

from lib_async_mover.errors import AsyncMoverError
from lib_async_mover.webui.host.detection import flag_given

ENABLED_OPTION = "async_lowvram_enabled"
BUFFER_OPTION = "async_lowvram_buffer_mb"
REMEMBER_OPTION = "async_lowvram_remember"
ALL_OPTION = "async_lowvram_all_stages"
PIN_OPTION = "async_lowvram_pin_limit_mb"
INTERVAL_OPTION = "async_lowvram_interval_s"

MIN_BUFFER_MB = 16
MAX_BUFFER_MB = 65536
AXIS_ATTRIBUTE = "async_lowvram_buffer_mb"  # set on `p` by the X/Y/Z plot

logger = logging.getLogger("async_lowvram")


class ChoiceError(AsyncMoverError):
    """A request asks for what there is not. The host's API answers with these attributes, whatever the error."""

    def __init__(self, message: str) -> None:
        super().__init__(f"Async lowvram: {message}.")
        self.status_code, self.detail = 422, str(self)


@dataclass(frozen=True)
class Choice:
    """`buffer_mb` = 0 is auto."""

    enabled: bool = False
    buffer_mb: int = 0


def option(key: str, default: Any) -> Any:
    """A setting; the default before the settings know it."""
    return getattr(shared.opts, key, default)


def as_megabytes(value: Any, least_mb: int = MIN_BUFFER_MB, most_mb: int = MAX_BUFFER_MB) -> int:
    """What a setting gave, as a size in MB. Nonsense, 0 and less are auto (0)."""
    try:
        size = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return 0
    return 0 if size <= 0 else min(max(size, least_mb), most_mb)


class StandingChoice:
    """What stands on the page, in both tabs. One per process: a reload of the page finds it again."""

    def __init__(self) -> None:
        self._choice: Choice | None = None

    @property
    def known(self) -> bool:
        """Whether anybody asked for it since the settings were changed."""
        return self._choice is not None

    def get(self) -> Choice:
        """At first, what the settings and the flag say."""
        if self._choice is None:
            enabled = flag_given() or bool(option(ENABLED_OPTION, False))
            self._choice = Choice(enabled, as_megabytes(option(BUFFER_OPTION, 0)))
        return self._choice

    def set(self, choice: Choice) -> None:
        """It stands from now on, and, if the user wants that, after a restart."""
        self._choice = choice
        if not option(REMEMBER_OPTION, True):
            return
        try:
            changed = shared.opts.set(ENABLED_OPTION, choice.enabled, run_callbacks=False)
            changed |= shared.opts.set(BUFFER_OPTION, choice.buffer_mb, run_callbacks=False)
            if changed:
                shared.opts.save(shared.config_filename)
        except (AssertionError, RuntimeError, KeyError, OSError) as error:  # --freeze-settings; a read-only folder
            logger.debug("the choice is not kept over a restart: %s", error)

    def reset(self) -> None:
        """The settings page changed what the accordion starts with."""
        self._choice = None


STANDING = StandingChoice()


def checked(given: Any) -> Choice:
    """{"enabled": …, "buffer_mb": …}, each exactly as a request may have it; what is left out is the page's choice.

    Raises ChoiceError.
    """
    standing = STANDING.get()
    if not isinstance(given, dict):
        raise ChoiceError(f"enabled is {given!r}; allowed are true, false, or a dictionary with enabled and buffer_mb")
    for key in given:
        if key not in ("enabled", "buffer_mb"):
            raise ChoiceError(f"{key!r} is no setting; allowed are enabled and buffer_mb")
    enabled, size = given.get("enabled"), given.get("buffer_mb")
    if not isinstance(enabled, bool | None):
        raise ChoiceError(f"enabled is {enabled!r}; allowed are true and false")
    number = not isinstance(size, bool) and isinstance(size, int | float) and math.isfinite(size)
    if not (size is None or number and (size == 0 or MIN_BUFFER_MB <= size <= MAX_BUFFER_MB)):
        raise ChoiceError(
            f"buffer_mb is {size!r}; allowed are {MIN_BUFFER_MB} to {MAX_BUFFER_MB} megabytes, and 0 for auto"
        )
    return Choice(standing.enabled if enabled is None else enabled, standing.buffer_mb if size is None else int(size))


def requested_by(p: Any, args: tuple[Any, ...]) -> Choice | None:
    """What one generation asks for, by the script's arguments (enabled, buffer_mb); None leaves what was asked before.

    The first argument may be all of them as one dictionary: {"enabled": true, "buffer_mb": 512}. A value of the
    X/Y/Z plot goes before both; below 0 it means off. A request that is wrong fails, without an image.
    """
    axis = getattr(p, AXIS_ATTRIBUTE, None)
    if axis is not None:
        return Choice(axis >= 0, as_megabytes(axis))
    if not args or args[0] is None:
        return None
    enabled, buffer_mb = (*args, None)[:2]
    try:
        by_position = isinstance(enabled, bool)
        return checked({"enabled": enabled, "buffer_mb": buffer_mb} if by_position else enabled)
    except ChoiceError as error:
        p.setup_prompts = _failing(error)
        return None


def _failing(error: ChoiceError) -> Callable[[], None]:
    """The host prints what a script raises, and goes on; what it calls next by itself ends the generation."""

    def fail() -> None:
        raise error

    return fail
