"""sd-webui-controlnet, as its source stands (56cec5b), in what matters to memory: when its network is made, what it
does around its models in each step, which modules it asks to move."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from tiny_models import CONTEXT, WIDTH
from torch import nn

Kind = Enum("Kind", ["ControlNet", "ControlLoRA", "T2I_Adapter", "IPAdapter", "Controlllite"])


def randomised(module: nn.Module, seed: int) -> Any:
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=dice) * 0.3)
    return module


class ControlNet(nn.Module):
    """`task` is Union's: a parameter of the outermost module, read in its own forward."""

    def __init__(self, task: bool = False) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.input_hint_block = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.label_emb = nn.Sequential(nn.Linear(CONTEXT, WIDTH))
        self.input_blocks = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])
        self.zero_convs = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(3)])
        self.middle_block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
        self.middle_block_out = nn.Sequential(nn.Conv2d(4, 4, 1))
        self.task_embedding = nn.Parameter(torch.zeros(2, 4)) if task else None

    def forward(self, x, hint, timesteps, context):
        emb = self.time_embed(torch.cos(timesteps[:, None] * torch.arange(WIDTH))) + self.label_emb(context.mean(1))
        h = torch.nn.functional.interpolate(hint, size=x.shape[-2:])
        h = x + self.input_hint_block(h) + emb.mean()
        if self.task_embedding is not None:
            h = h + self.task_embedding[1][None, :, None, None]
        outs = []
        for block, zero in zip(self.input_blocks, self.zero_convs, strict=True):
            h = torch.tanh(block(h))
            outs.append(zero(h))
        return [*outs, self.middle_block_out(self.middle_block(h))]


class Pluggable(nn.Module):
    """What the extension calls and moves; `moves` counts the times that its weights were really told to move."""

    def __init__(self, control_model: nn.Module) -> None:
        super().__init__()
        self.control_model = control_model
        self.gpu_component: Any = None
        self.is_control_lora = False
        self.moves = 0

    def reset(self) -> None:
        pass

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.control_model(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.moves += 1
        return super()._apply(*args, **kwargs)

    def aggressive_lowvram(self) -> None:
        self.to("cpu")

        def send_me_to_gpu(module: nn.Module, _: Any) -> None:
            if self.gpu_component is module:
                return
            if self.gpu_component is not None:
                self.gpu_component.to("cpu")
            self.moves += 1
            module.to("cpu")
            self.gpu_component = module

        inner = self.control_model
        for part in (
            inner.time_embed,
            inner.input_hint_block,
            inner.label_emb,
            inner.middle_block,
            *inner.input_blocks,
        ):
            part.register_forward_pre_hook(send_me_to_gpu)

    def fullvram(self) -> None:
        self.to("cpu")


class Adapter(nn.Module):
    """T2I: moves itself there and back in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 4, 3, padding=1)
        self.moves = 0

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.moves += 1
        return super()._apply(*args, **kwargs)

    def forward(self, hint):
        self.to(hint.device)
        found = [self.conv_in(hint)]
        self.to("cpu")
        return found


class PluggableAdapter(Pluggable):
    """Computes once per image."""

    def reset(self) -> None:
        self.control: Any = None

    def forward(self, x, hint, timesteps, context):
        if self.control is None:
            self.control = self.control_model(torch.nn.functional.interpolate(hint, size=(8, 8)))
        return [torch.nn.functional.interpolate(one, size=x.shape[-2:]) for one in self.control]


class PluggableIPAdapter(nn.Module):
    """Computes on the CPU, once per image, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.disable_memory_management = True
        self.ipadapter = nn.Linear(4, 4)

    def reset(self) -> None:
        pass


class PluggableLLLite(nn.Module):
    """Small modules, called from within the UNet's layers, in a dictionary that hides `modules()`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.modules = {"first": self.first}

    def reset(self) -> None:
        pass


class LinearWithLoRA(nn.Module):
    """Control-LoRA's layer: a list keeps the UNet's own leaf from being its child."""

    def __init__(self, leaf: nn.Module) -> None:
        super().__init__()
        self.weight_module = [leaf]
        self.up = nn.Parameter(torch.zeros(leaf.weight.shape[0], 2))
        self.down = nn.Parameter(torch.zeros(2, leaf.weight.shape[1]))

    def forward(self, x):
        return nn.functional.linear(x, self.weight_module[0].weight.to(x) + torch.mm(self.up, self.down).to(x))


class ControlLoRA(nn.Module):
    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.late = LinearWithLoRA(unet.output_blocks[1].to_q)
        self.early = LinearWithLoRA(unet.time_embed[0])

    def forward(self, x, hint, timesteps, context):
        emb = self.early(torch.cos(timesteps[:, None] * torch.arange(WIDTH)))
        return [x * self.late(emb).mean()]


class UnetHook(nn.Module):
    """`hook.py`: the UNet's forward replaced, the models run inside it."""

    def __init__(self, lowvram_box: bool, webui: Any) -> None:
        super().__init__()
        self.lowvram = lowvram_box
        self.webui = webui
        self.model: Any = None
        self.control_params: Any = None
        self.step = 0

    def hook(self, model: nn.Module, control_params: list[Any]) -> None:
        self.model, self.control_params = model, control_params
        outer, original, is_sdxl = self, model.forward, hasattr(model, "label_emb")

        def forward(self: nn.Module, x: Any, timesteps: Any, context: Any, y: Any = None) -> Any:
            share = outer.step / outer.steps
            for param in outer.control_params:
                param.guidance_stopped = not param.start <= share <= param.stop
                if param.control_model is None or getattr(param.control_model, "disable_memory_management", False):
                    continue
                if outer.lowvram and is_sdxl and hasattr(param.control_model, "aggressive_lowvram"):
                    param.control_model.aggressive_lowvram()
                elif hasattr(param.control_model, "fullvram"):
                    param.control_model.fullvram()
                else:
                    param.control_model.to("cpu")
            total = 0.0
            for param in outer.control_params:
                if not param.guidance_stopped and param.control_model_type in (
                    Kind.ControlNet, Kind.ControlLoRA, Kind.T2I_Adapter
                ):  # fmt: skip
                    outs = param.control_model(x=x, hint=param.hint_cond, timesteps=timesteps, context=context)
                    total = total + param.weight * sum(outs)
            for param in outer.control_params:
                if param.control_model is not None and outer.lowvram:
                    param.control_model.to("cpu")
            outer.step += 1
            return original(x + total, timesteps, context, y)

        def forward_webui(*args: Any, **kwargs: Any) -> Any:
            try:
                outer.webui.lowvram.send_everything_to_cpu()
                return forward(*args, **kwargs)
            except Exception:
                move_all_to_cpu()
                raise
            finally:
                if outer.lowvram:
                    move_all_to_cpu()

        def move_all_to_cpu() -> None:
            for param in outer.control_params or []:
                if isinstance(param.control_model, nn.Module):
                    param.control_model.to("cpu")

        model._original_forward = model.forward
        model.forward = MethodType(forward_webui, model)

    def restore(self) -> None:
        self.control_params = None
        if hasattr(self.model, "_original_forward"):
            self.model.__dict__.pop("forward")
            del self.model.__dict__["_original_forward"]


class ControlScript:
    """The always-on script. `units` are (name of a model, {weight, start, stop}); `shelf` makes models by name."""

    def __init__(self, webui: Any, steps: int = 2) -> None:
        self.webui = webui
        self.steps = steps
        self.latest_network: Any = None
        self.units: list[tuple[str, dict[str, float]]] = []
        self.low_vram = False
        self.cache: OrderedDict[str, Any] = OrderedDict()
        self.cache_size = 2
        self.on_preprocess: Callable[[], None] = lambda: None
        self.shelf: dict[str, tuple[Kind, Callable[[nn.Module], nn.Module]]] = {
            "canny": (Kind.ControlNet, lambda _: Pluggable(randomised(ControlNet(), 1))),
            "depth": (Kind.ControlNet, lambda _: Pluggable(randomised(ControlNet(), 2))),
            "union": (Kind.ControlNet, lambda _: Pluggable(randomised(ControlNet(task=True), 3))),
            "t2i": (Kind.T2I_Adapter, lambda _: PluggableAdapter(randomised(Adapter(), 4))),
            "ip": (Kind.IPAdapter, lambda _: PluggableIPAdapter()),
            "lllite": (Kind.Controlllite, lambda _: PluggableLLLite()),
            "lora": (Kind.ControlLoRA, partial(_control_lora)),
        }

    def process(self, p: Any) -> None:
        if self.latest_network is not None:
            self.latest_network.restore()
        self.latest_network = None
        if not self.units:
            return
        unet = p.sd_model.model.diffusion_model
        params = []
        for name, unit in self.units:
            kind, _ = self.shelf[name]
            model = self.load(name, unet)
            model.reset()
            self.on_preprocess()
            params.append(SimpleNamespace(
                control_model=model, control_model_type=kind, weight=unit.get("weight", 1.0), guidance_stopped=False,
                start=unit.get("start", 0.0), stop=unit.get("stop", 1.0),
                hint_cond=torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8),
            ))  # fmt: skip
        self.latest_network = UnetHook(self.low_vram, self.webui)
        self.latest_network.steps = self.steps
        self.latest_network.hook(unet, params)

    def load(self, name: str, unet: nn.Module) -> Any:
        if name in self.cache and self.shelf[name][0] is not Kind.ControlLoRA:  # bound to its UNet
            return self.cache[name]
        if len(self.cache) >= self.cache_size:
            self.cache.popitem(last=False)
        self.cache[name] = self.shelf[name][1](unet)
        return self.cache[name]

    def postprocess(self, p: Any) -> None:
        if self.latest_network is not None:
            self.latest_network.restore()
            self.latest_network = None


def _control_lora(unet: nn.Module) -> Pluggable:
    model = Pluggable(randomised(ControlLoRA(unet), 5))
    model.is_control_lora = True
    return model
