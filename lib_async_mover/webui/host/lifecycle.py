"""What the host's events mean for the models: a script is executed or unloaded, a model is loaded, a generation and a
sampling begin, a mover fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from modules import call_queue, shared

from lib_async_mover.errors import ArenaAllocationError, AsyncMoverError
from lib_async_mover.webui.host.choice import STANDING, requested_by
from lib_async_mover.webui.host.conversion import CONVERSIONS
from lib_async_mover.webui.host.convert import convert, hold_as_stock, restore
from lib_async_mover.webui.host.detection import flag_given
from lib_async_mover.webui.host.guard import Guard
from lib_async_mover.webui.host.guests import GUESTS
from lib_async_mover.webui.host.orders import keep_order
from lib_async_mover.webui.host.patches import Patches
from lib_async_mover.webui.host.residency import give_vram_back
from lib_async_mover.webui.host.state import STATE
from lib_async_mover.webui.host.stock import blocks_of, layout_of, take_off

LEAVE_AFTER_S = 20.0  # scripts execute again within this time after they were unloaded, unless we were disabled


class Lifecycle:
    """One per process, on a host that is supported."""

    def __init__(self) -> None:
        self._patches = Patches(self._set_up)
        self._armed = False
        self._generation = 0  # id of the processing object

    # --- the script

    def arm(self) -> None:
        """The script was executed (again). With the flag, be in place before the model is loaded."""
        self._armed = True
        if not STANDING.known:
            STATE.requested = STANDING.get()  # until the first generation says otherwise
        if flag_given():
            # The flag means --lowvram: the host reads it to load the model into RAM, not onto the GPU.
            shared.cmd_opts.lowvram = True
        if flag_given() or STATE.requested.enabled:
            self._patches.install()

    def disarm(self) -> None:
        """Take our replacements out of the host. A generation may be in flight, and a reload is not a farewell: models
        go back to stock a while later, if the script has not been executed again by then."""
        self._armed = False
        self._patches.uninstall()
        GUESTS.dismiss()
        if CONVERSIONS.items():
            farewell = threading.Timer(LEAVE_AFTER_S, self.leave)
            farewell.daemon = True
            farewell.start()

    def leave(self) -> None:
        """The extension was disabled: give every model back, between generations."""
        with call_queue.queue_lock:
            if not self._armed:
                for sd_model, _ in CONVERSIONS.items():
                    self._restore(sd_model)

    # --- one generation; `args` are the script's, (enabled, buffer_mb)

    def before_process(self, p: Any, args: tuple[Any, ...]) -> None:
        """Before anything is computed, or a checkpoint loaded for it: what is asked for, and a fresh start after a
        failure."""
        self._generation = id(p)
        STATE.begin_generation()
        STATE.requested = requested_by(p, args) or STATE.requested
        if STATE.requested.enabled:
            self._patches.install()
        give_vram_back()  # ControlNet's preprocessors come in `process`

    def process(self, p: Any) -> None:
        """Before conditioning and the VAE's first use: the live model is the generation's by now."""
        self._apply(p.sd_model)

    def before_sampling(self, p: Any, args: tuple[Any, ...]) -> None:
        """Give the live model to the mover, or back to stock. Never raises: at worst this generation is stock's.

        A nested pass that hands on no arguments keeps what was asked for.
        """
        if id(p) != self._generation:
            self.before_process(p, args)
        STATE.requested = requested_by(p, args) or STATE.requested
        self._apply(p.sd_model)
        GUESTS.look(p)

    def postprocess(self) -> None:
        """The images are there."""
        for mover in CONVERSIONS.movers():
            if not mover.whole:
                keep_order(mover)

    # --- one model

    def _apply(self, sd_model: Any) -> None:
        if STATE.streaming:
            self._patches.install()
            self._convert(sd_model)
        else:
            self._restore(sd_model)

    def _convert(self, sd_model: Any) -> bool:
        try:
            convert(sd_model, STATE.requested.buffer_mb, STATE.host.device, self._recover)
            return True
        except AsyncMoverError as error:
            STATE.warn(f"{error} This generation runs without the mover.")
        except Exception as error:  # noqa: BLE001  the image matters more than the mover
            STATE.warn("could not take the model over; this generation runs without the mover", error)
        STATE.given_up = True
        self._restore(sd_model)
        return False

    def _restore(self, sd_model: Any) -> None:
        try:
            restore(sd_model)
        except Exception as error:  # noqa: BLE001  nothing better can be done here than to say it
            STATE.warn("could not give the model back cleanly: load the checkpoint again", error)

    def _set_up(self, stock: Callable[..., None], sd_model: Any, use_medvram: bool) -> None:
        """In place of `lowvram.setup_for_low_vram`, which the host calls for a model that is to be parked in RAM: a new
        one, before the hijack, or one kept loaded that becomes the live one again."""
        if not STATE.streaming:
            # Stock's lowvram form crashes on a UNet that is not built of blocks (SD3).
            stock(sd_model, use_medvram or not blocks_of(sd_model.model.diffusion_model))
            return
        if not hasattr(sd_model, "lowvram") and self._patches.stock_is_needed(sd_model):
            # Its closure is what the model goes back to. The medvram form asks nothing of the UNet's structure.
            stock(sd_model, True)
        if self._convert(sd_model):
            return
        layout, hooks, elsewhere = layout_of(sd_model)
        take_off(hooks)
        hold_as_stock(sd_model, layout, elsewhere, hooks[0].hook if hooks else None)

    def _recover(self, guard: Guard, error: Exception) -> None:
        """The mover failed: the model goes back to stock, and what failed is done again."""
        sd_model = next((model for model, one in CONVERSIONS.items() if guard in one.guards), None)
        if sd_model is None:
            raise error
        if isinstance(error, ArenaAllocationError):
            STATE.warn(
                "no room in VRAM even for the least buffer, so this generation runs on stock's mechanism: "
                "close other programs that use the GPU, or make a smaller image"
            )
        else:
            STATE.warn("the mover failed, so this generation runs on stock's mechanism; please report this", error)
        STATE.given_up = True
        self._restore(sd_model)


LIFECYCLE = Lifecycle()
