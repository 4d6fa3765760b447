"""Control models as guests of the UNet: sd-webui-controlnet runs them inside its forward, so they stream with it.

The extension is never imported. Its script is the always-on one that has `latest_network`, whose `control_params` each
have a `control_model`: a module that moves itself, around an inner `control_model` that computes. The inner one is the
guest. It stays one from image to image while the extension keeps it and asks for it again: to pack and trace it anew
would cost each image several steps.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lib_async_mover import Mover
from lib_async_mover.errors import AsyncMoverError, ConcurrentForwardError
from lib_async_mover.plan.workload import MIB
from lib_async_mover.webui.host.component import Component
from lib_async_mover.webui.host.method_patch import MethodPatch
from lib_async_mover.webui.host.stages import bytes_of
from lib_async_mover.webui.host.state import STATE
from lib_async_mover.webui.host.stock import Placed, take_off

SWITCH = "disable_memory_management"  # on a control model: the extension brings nothing to the GPU before a step


class StaysPut(MethodPatch):
    """`to` of a guest. Where its weights lie is the mover's business; another dtype is not.

    The switch does not cover this: with *Low VRAM*, `to("cpu")` comes in each step nevertheless, and a
    T2I adapter moves itself there and back within its own forward.
    """

    away = False  # the guest left, but somebody stands in front of us: calls are only passed on

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.away:
            return self.original()(*args, **kwargs)
        _, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is None and memory_format is None:
            return self.owner
        return self.original()(dtype=dtype, memory_format=memory_format)


class Guest:
    """A control model, and what of ours is on it. Held weakly: it goes when the extension's cache lets go of it."""

    def __init__(self, model: Any) -> None:
        module = model.control_model
        self.model, self.module = weakref.ref(model), weakref.ref(module)
        self._before = vars(model).get(SWITCH)
        self._patches = [StaysPut(part, "to") for part in (model, module)]
        model.to(torch.device("cpu"))
        # *Low VRAM* with SDXL leaves hooks behind that move block by block, and registers them anew when it needs them.
        for part in module.modules():
            take_off([Placed(part, hook) for hook in set(part._forward_pre_hooks.values()) if _moves_blocks(hook)])
        setattr(model, SWITCH, True)
        for patch in self._patches:
            patch.install()

    def let_go(self) -> None:
        model = self.model()
        if model is None:
            return
        for patch in self._patches:
            patch.away = True
            patch.remove()
        if self._before is not None:
            setattr(model, SWITCH, self._before)
        elif SWITCH in vars(model):
            delattr(model, SWITCH)


class Guests:
    """Those of the one UNet that computes; one per process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._scripts: list[weakref.ref[Any]] = []
        self._mover: weakref.ref[Mover] | None = None
        self._held: list[Guest] = []
        self._refused: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._told: set[str] = set()  # kinds of which was said why they do not stream

    def look(self, p: Any) -> None:
        """A sampling begins. In whatever order scripts run, the extension's network was made before the texts were
        encoded. A nested pass (ADetailer's) does not tell us, but has the same script objects."""
        runner = getattr(p, "scripts", None)
        found = [one for one in getattr(runner, "alwayson_scripts", None) or () if hasattr(one, "latest_network")]
        with self._lock:
            self._scripts = [weakref.ref(script) for script in found]
            live = {model for model, _ in self._live(p.sd_model.model.diffusion_model)}
            if not any(guest.model() in live for guest in self._held):
                self.dismiss()

    def invite(self, unet: Component) -> None:
        """A forward of the UNet is about to begin: who will run inside it streams with it."""
        with self._lock:
            # None of them: those of the last pass stay. A nested one without control must not send them away.
            found = {model: kind for model, kind in self._live(unet.module) if self._can_be_guest(model, kind)}
            known = {guest.model() for guest in self._held}
            if found and (self._host() is not unet.mover or known != set(found)):
                self._change(unet.mover, found)

    def dismiss(self, mover: Mover | None = None) -> None:
        """Give all guests, or those of `mover`, back to the extension. In a forward it is left to the next sampling."""
        with self._lock:
            host = self._host()
            if mover is not None and mover is not host:
                return
            try:
                if host is not None:
                    host.guests = []
            except ConcurrentForwardError:
                return
            held, self._held, self._mover = self._held, [], None
            for guest in held:
                guest.let_go()

    def _host(self) -> Mover | None:
        return self._mover() if self._mover is not None else None

    def _change(self, mover: Mover, found: dict[nn.Module, str]) -> None:
        if self._host() is not mover:
            self.dismiss()
            self._mover = weakref.ref(mover)
        gone = [guest for guest in self._held if guest.model() not in found]
        self._held = [guest for guest in self._held if guest not in gone]
        mover.guests = _alive(self._held)
        for guest in gone:
            guest.let_go()
        known = {guest.model() for guest in self._held}
        for model, kind in found.items():
            if model not in known:
                self._add(mover, model, kind)

    def _add(self, mover: Mover, model: nn.Module, kind: str) -> None:
        guest = Guest(model)
        try:
            mover.guests = _alive([*self._held, guest])
        except Exception as error:
            guest.let_go()
            if not isinstance(error, AsyncMoverError):
                raise
            self._refused.add(model)
            STATE.say(f"{_title(model, kind)} does not stream: {error}; tick its Low VRAM box if VRAM is short")
            return
        self._held.append(guest)
        STATE.say(f"{_title(model, kind)} streams with the UNet; its Low VRAM box changes nothing")

    def _live(self, unet: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        """Control models that run in the forwards of `unet`, and what the extension calls their kind."""
        for script in self._scripts:
            network = getattr(script(), "latest_network", None)
            if network is None or getattr(network, "model", unet) is not unet:  # the refiner's UNet has none
                continue
            for param in getattr(network, "control_params", None) or ():
                model, kind = getattr(param, "control_model", None), getattr(param, "control_model_type", None)
                if isinstance(model, nn.Module):
                    yield model, str(getattr(kind, "name", "control model"))

    def _can_be_guest(self, model: nn.Module, kind: str) -> bool:
        if any(guest.model() is model for guest in self._held):
            return True
        reason = why_not(model)
        if reason and kind not in self._told:  # the extension makes some of them anew for each image
            self._told.add(kind)
            STATE.say(f"{_title(model, kind)} does not stream: {reason}")
        return not reason and model not in self._refused


def why_not(model: nn.Module) -> str | None:
    """Why a control model cannot be a guest, and what to do; None if it can."""
    if getattr(model, SWITCH, False):  # an IP-Adapter: it computes on the CPU, once per image
        return "it sees to its memory itself; nothing to do"
    if getattr(model, "is_control_lora", False):
        return "it computes with the UNet's own weights, in an order of its own; tick its Low VRAM box if VRAM is short"
    if not isinstance(getattr(model, "control_model", None), nn.Module):
        # ControlLLLite: dozens of small modules, each of which moves itself when it is called
        return "its layers are called from within the UNet's and move themselves; leave its Low VRAM box unticked"
    return None


def _title(model: nn.Module, kind: str) -> str:
    return f"{kind} ({bytes_of(model) / MIB:.0f} MiB)"


def _alive(held: list[Guest]) -> list[nn.Module]:
    return [module for guest in held if (module := guest.module()) is not None]


def _moves_blocks(hook: Any) -> bool:
    return getattr(hook, "__qualname__", "").endswith("send_me_to_gpu")


GUESTS = Guests()
