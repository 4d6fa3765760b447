"""The webui as the adapter sees it: scripts loaded, a model, images made in the host's order of events."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from lib_async_mover import Mover, mover_of

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).resolve().parent / "stub"
SCRIPT = ROOT / "scripts" / "async_lowvram.py"


def unet_mover(model: Any) -> Mover | None:
    return mover_of(model.model.diffusion_model)


def streams(model: Any) -> bool:
    return unet_mover(model) is not None


class Webui:
    """`modules` are the stub's; `script` is the instance the host would make. Use the fixture of the same name."""

    def __init__(self) -> None:
        self.shared = importlib.import_module("modules.shared")
        self.devices = importlib.import_module("modules.devices")
        self.lowvram = importlib.import_module("modules.lowvram")
        self.sd_models = importlib.import_module("modules.sd_models")
        self.callbacks = importlib.import_module("modules.script_callbacks")
        self.scripts = importlib.import_module("modules.scripts")
        self.namespace: ModuleType | None = None
        self.script: Any = None
        self.others: list[Any] = []  # other extensions' always-on scripts, with `process(p)` and `postprocess(p)`
        self.others_first = False

    @property
    def conversions(self) -> Any:
        """The adapter's account of the models that stream."""
        return importlib.import_module("lib_async_mover.webui.host.conversion").CONVERSIONS

    # --- the host's life

    def start(self, *flags: str) -> Webui:
        """Parse `flags` (--lowvram, --medvram, --async-lowvram), then load the scripts."""
        for flag in flags:
            setattr(self.shared.cmd_opts, flag.lstrip("-").replace("-", "_"), True)
        self.load_scripts()
        return self

    def load_scripts(self) -> None:
        """As the host: the extension's folder is on sys.path only while its script executes."""
        self.callbacks.clear_callbacks()
        path = sys.path
        sys.path = [str(ROOT), *path]
        try:
            self.reload_script_body()
        finally:
            sys.path = path

    def reload_script_body(self) -> None:
        spec = importlib.util.spec_from_file_location(SCRIPT.name, SCRIPT)
        assert spec is not None and spec.loader is not None
        self.namespace = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.namespace)
        self.script = self.namespace.AsyncLowvramScript()

    def reload_ui(self) -> None:
        self.callbacks.script_unloaded_callback()
        self.load_scripts()

    def load_model(self, kind: str = "sd1", seed: int = 1) -> Any:
        """Build, place, hijack, make current, compute the empty prompt."""
        with torch.no_grad():
            return self.sd_models.load_model(kind, seed)

    def switch_to(self, kind: str, seed: int, limit: int = 1) -> Any:
        """Another checkpoint becomes the live one."""
        with torch.no_grad():
            return self.sd_models.switch_to(kind, seed, limit)

    # --- one image

    def txt2img(
        self,
        *args: Any,
        steps: int = 2,
        hires: bool = False,
        preview: bool = False,
        between: Callable[[int], None] | None = None,
        prompt: int = 5,
    ) -> torch.Tensor:
        """Latents are 4×8×8 (hires 4×12×12). `args` are the script's (enabled, buffer_mb); none: no script runs.

        Args:
            between: called before each step with its number: a refiner's switch, an interrupt.
            prompt: its number of tokens.
        """
        p = self._begin(args)
        model = self.shared.sd_model
        with torch.no_grad():
            cond = model.get_learned_conditioning(torch.arange(prompt)[None])
            model.get_learned_conditioning(torch.arange(1)[None])
            x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
            x = self._sample(p, x, cond, args, steps, preview, between)
            if hires:
                x = torch.nn.functional.interpolate(x, size=(12, 12))
                x = self._sample(p, x, cond, args, steps, preview, between)
            image = self.shared.sd_model.decode_first_stage(x)
        self._end(p)
        return image

    def img2img(self, *args: Any, steps: int = 2) -> torch.Tensor:
        p = self._begin(args)
        model = self.shared.sd_model
        with torch.no_grad():
            x = model.encode_first_stage(torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8))
            cond = model.get_learned_conditioning(torch.arange(5)[None])
            model.get_learned_conditioning(torch.arange(1)[None])
            image = model.decode_first_stage(self._sample(p, x, cond, args, steps, False, None))
        self._end(p)
        return image

    def _begin(self, args: tuple) -> Any:
        p = SimpleNamespace(sd_model=self.shared.sd_model, scripts=SimpleNamespace(alwayson_scripts=self.others))
        if args:
            self.script.before_process(p, *args)
            getattr(p, "setup_prompts", lambda: None)()
        ours = [partial(self.script.process, p, *args)] if args else []
        theirs = [partial(other.process, p) for other in self.others]
        for process in (*theirs, *ours) if self.others_first else (*ours, *theirs):
            process()
        getattr(p, "setup_prompts", lambda: None)()
        return p

    def _end(self, p: Any) -> None:
        if self.lowvram.is_enabled(self.shared.sd_model):
            self.lowvram.send_everything_to_cpu()
        self.devices.torch_gc()
        self.script.postprocess(p, None)
        for other in self.others:
            other.postprocess(p)

    def _sample(
        self,
        p: Any,
        x: torch.Tensor,
        cond: torch.Tensor,
        args: tuple,
        steps: int,
        preview: bool,
        between: Callable[[int], None] | None,
    ) -> torch.Tensor:
        if args:
            self.before_sampling(*args, p=p)
        for step in range(steps):
            if between is not None:
                between(step)
            model = self.shared.sd_model
            y = cond.mean(1) if hasattr(model.model.diffusion_model, "label_emb") else None
            t = torch.full((x.shape[0],), float(steps - step))
            x = x - 0.3 * model.apply_model(x, t, cond, y)
            if preview:
                model.decode_first_stage(x)
        return x

    def before_sampling(self, *args: Any, p: Any = None) -> None:
        p = p or SimpleNamespace(sd_model=self.shared.sd_model)
        self.script.process_before_every_sampling(p, *args, x=None, noise=None, c=None, uc=None)
