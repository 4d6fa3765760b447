"""Which host this is, and whether the extension works on it.

Told by features, not by names: a fork that keeps the webui's lowvram machinery is as good as the webui. The
host's modules are imported inside the functions, since each of them may be missing on some fork.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from types import ModuleType

import torch

BACKEND_VARIABLE = "ASYNC_LOWVRAM_BACKEND"  # "cpu": the CPU plays a GPU, for tests and demonstrations
STREAMING_DEVICES = ("cuda", "xpu")
LOWVRAM_FEATURES = ("module_in_gpu", "send_everything_to_cpu", "is_needed", "apply", "setup_for_low_vram")


@dataclass(frozen=True)
class Host:
    """What was found. `reason` is None where the extension works; `device` is where the weights are streamed to."""

    device: torch.device
    reason: str | None = None

    @property
    def supported(self) -> bool:
        return self.reason is None


def detect() -> Host:
    """Look at the running webui. Changes nothing."""
    device = _device()
    fork = _fork()
    if fork is not None:
        return Host(device, f"{fork} moves models itself")
    missing = _missing_features()
    if missing:
        return Host(device, f"this webui lacks {', '.join(missing)}, which stable-diffusion-webui 1.10 has")
    played = device.type == "cpu" and os.environ.get(BACKEND_VARIABLE) == "cpu"
    if device.type in STREAMING_DEVICES or played:
        return Host(device)
    if device.type == "cpu":
        return Host(device, "there is no CUDA or XPU device, so there is no VRAM to save")
    kind = "DirectML" if device.type == "privateuseone" else device.type.upper()
    return Host(device, f"{kind} has no copy streams (use --lowvram or --medvram instead)")


def flag_given() -> bool:
    """Was the webui started with `--async-lowvram`? cmd_opts lacks it where the extension came by Reload UI."""
    shared = _import("modules.shared")
    return bool(getattr(getattr(shared, "cmd_opts", None), "async_lowvram", False))


def _device() -> torch.device:
    devices = _import("modules.devices")
    device = getattr(devices, "device", None)
    return torch.device(device) if device is not None else torch.device("cpu")


def _fork() -> str | None:
    if _exists("modules_forge") or _exists("ldm_patched"):
        return "Forge"
    if _exists("installer") and not _exists("modules.launch_utils"):
        return "SD.Next"
    return None


def _missing_features() -> list[str]:
    lowvram = _import("modules.lowvram")
    script = getattr(_import("modules.scripts"), "Script", None)
    accordion = getattr(_import("modules.ui_components"), "InputAccordion", None)
    missing = [f"lowvram.{name}" for name in LOWVRAM_FEATURES if not hasattr(lowvram, name)]
    if not hasattr(script, "process_before_every_sampling"):
        missing.append("Script.process_before_every_sampling")
    if accordion is None:
        missing.append("ui_components.InputAccordion")
    return missing


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a parent that is no package; a stub without a spec
        return False


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
