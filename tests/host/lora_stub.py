"""A LoRA, as the builtin extension applies it."""

from __future__ import annotations

import torch
from torch import nn


class Lora:
    """Class-level forwards; the first one after a change backs the weight up to the CPU and edits it in place, wherever
    it is; `bias` may be new. What was done is remembered by name: an edit that gets lost is never redone."""

    def __init__(self, kinds=(nn.Linear, nn.Conv2d), with_bias: bool = False) -> None:
        self.scale = 0.0
        self.with_bias = with_bias
        self.kinds = kinds
        self.originals = {kind: kind.forward for kind in kinds}
        for kind in kinds:
            kind.forward = self.forward_of(kind)

    def remove(self) -> None:
        for kind, forward in self.originals.items():
            kind.forward = forward

    def forward_of(self, kind):
        original = self.originals[kind]

        def forward(module, x):
            self.apply(module)
            return original(module, x)

        return forward

    def apply(self, module) -> None:
        if getattr(module, "lora_scale", 0.0) == self.scale:
            return
        if getattr(module, "lora_backup", None) is None:
            bias = None if module.bias is None else module.bias.to("cpu", copy=True)
            module.lora_backup = (module.weight.to("cpu", copy=True), bias)
        weight, bias = module.lora_backup
        with torch.no_grad():
            module.weight.copy_(weight)
            module.bias = None if bias is None else module.bias
            if bias is not None:
                module.bias.copy_(bias)
            if self.scale:
                module.weight += self.scale * torch.ones_like(module.weight)
                if self.with_bias and module.bias is None:
                    module.bias = nn.Parameter(torch.full(module.weight.shape[:1], 0.1, device=module.weight.device))
        module.lora_scale = self.scale
