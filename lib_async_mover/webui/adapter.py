"""What the host's events mean for the models: a model is loaded, a sampling begins, a mover fails, we are unloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import shared

from lib_async_mover.errors import ArenaAllocationError, AsyncMoverError
from lib_async_mover.webui.convert import convert, hold_as_stock, layout_of, restore
from lib_async_mover.webui.guard import Guard
from lib_async_mover.webui.host import Host
from lib_async_mover.webui.patch import Patches
from lib_async_mover.webui.state import STATE, Wanted
from lib_async_mover.webui.stock import Layout, take_off

MIN_BUFFER_MB = 16
MAX_BUFFER_MB = 65536


class Adapter:
    """One per process, on a host that is supported."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.patches = Patches(self._set_up)
        STATE.wanted = Wanted(enabled=STATE.flag)

    def arm(self) -> None:
        """The script was executed (again). With the flag, be in place before the model is loaded."""
        if STATE.flag:
            # The flag means --lowvram: the host reads it to load the model into RAM, not onto the GPU.
            shared.cmd_opts.lowvram = True
        if STATE.flag or STATE.wanted.enabled:
            self.patches.install()

    def disarm(self) -> None:
        """Take our replacements out of the host. Models stay as they are: a generation may be in flight."""
        self.patches.uninstall()

    def before_sampling(self, sd_model: Any, enabled: Any, buffer_mb: Any) -> None:
        """Give the live model to the mover, or back to stock. Never raises: at worst this generation is stock's."""
        STATE.wanted = Wanted(bool(enabled), as_megabytes(buffer_mb))
        if STATE.wanted.enabled:
            self.patches.install()
            self._convert(sd_model)
        else:
            self._restore(sd_model)

    def _convert(self, sd_model: Any) -> bool:
        try:
            convert(sd_model, STATE.wanted.vram_mb, self.host.device, self._recover)
            return True
        except AsyncMoverError as error:
            STATE.warn(f"{error} This generation runs without the mover.")
        except Exception as error:  # noqa: BLE001  the image matters more than the mover
            STATE.warn("could not take the model over; this generation runs without the mover", error)
        self._restore(sd_model)
        return False

    def _restore(self, sd_model: Any) -> None:
        try:
            restore(sd_model)
        except Exception as error:  # noqa: BLE001  nothing better can be done here than to say it
            STATE.warn("could not give the model back cleanly: load the checkpoint again", error)

    def _set_up(self, stock: Callable[..., None], sd_model: Any, use_medvram: bool) -> None:
        """In place of `lowvram.setup_for_low_vram`, which the host calls once per model, before the hijack."""
        if getattr(sd_model, "lowvram", False) or not STATE.wanted.enabled:
            stock(sd_model, use_medvram)
            return
        # Stock's medvram form leaves the whole UNet in RAM and asks nothing of its structure.
        stock(sd_model, True)
        if not self._convert(sd_model) and not use_medvram:
            _, hooks = layout_of(sd_model)
            take_off(hooks)
            hold_as_stock(sd_model, Layout.BLOCKS, hooks[0].hook)

    def _recover(self, guard: Guard, error: Exception) -> None:
        """The mover failed in a forward: the model goes back to stock, and the forward runs again."""
        sd_model = next((model for model, c in list(STATE.conversions.items()) if c.guard is guard), None)
        if sd_model is None:
            raise error
        if isinstance(error, ArenaAllocationError):
            STATE.warn(
                "no room in VRAM even for the least buffer, so this generation runs on stock's mechanism: "
                "close other programs that use the GPU, or make a smaller image"
            )
        else:
            STATE.warn("the mover failed, so this generation runs on stock's mechanism; please report this", error)
        self._restore(sd_model)


def as_megabytes(value: Any) -> int:
    """What the slider or the API gave, as a size in MB. Nonsense and 0 are auto (0)."""
    try:
        size = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return 0
    return 0 if size <= 0 else min(max(size, MIN_BUFFER_MB), MAX_BUFFER_MB)
