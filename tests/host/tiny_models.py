"""Models of a few kilobytes in the layouts of SD1, SDXL and SD3: what matters to lowvram is the same as in the real
ones: who owns whom, who is called how, and in which order."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

WIDTH = 8
CONTEXT = 6


class Block(nn.Module):
    """A residual block with an attention that is not executed in the order of its definition."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))
        self.norm = nn.GroupNorm(2, in_width)
        self.conv = nn.Conv2d(in_width, width, 3, padding=1)
        self.emb = nn.Linear(WIDTH, width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(CONTEXT, width, bias=False)

    def forward(self, x, emb, context):
        x = self.conv(torch.nn.functional.silu(self.norm(x)))
        x = x + self.emb(emb)[:, :, None, None]
        batch, width, high, wide = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(batch, high * wide, width)
        weights = (self.to_q(tokens) @ self.to_k(context).transpose(1, 2)).softmax(-1)
        tokens = tokens + self.to_out[0](weights @ self.to_k(context))  # the container's hooks do not fire
        return tokens.reshape(batch, high, wide, width).permute(0, 3, 1, 2)


class UNet(nn.Module):
    """ldm's and sgm's layout."""

    def __init__(self, with_label: bool = False) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        if with_label:
            self.label_emb = nn.Sequential(nn.Linear(CONTEXT, WIDTH))
        self.input_blocks = nn.ModuleList([nn.Conv2d(4, WIDTH, 3, padding=1)] + [Block(WIDTH, WIDTH) for _ in range(3)])
        self.middle_block = Block(WIDTH, WIDTH)
        self.output_blocks = nn.ModuleList([Block(2 * WIDTH, WIDTH) for _ in range(3)])
        self.out = nn.Sequential(nn.GroupNorm(2, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, 4, 3, padding=1))

    def forward(self, x, timesteps, context, y=None):
        emb = self.time_embed(torch.cos(timesteps[:, None] * torch.arange(WIDTH)))
        if y is not None:
            emb = emb + self.label_emb(y)
        skips = []
        for block in self.input_blocks:
            x = block(x) if isinstance(block, nn.Conv2d) else block(x, emb, context)
            skips.append(x)
        x = self.middle_block(x, emb, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb, context)
        return self.out(x)


class JointBlock(nn.Module):
    """Called by its sub-methods: its own hooks never fire."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def pre_attention(self, x):
        return self.qkv(x).chunk(3, dim=-1)

    def post_attention(self, x, attention):
        return x + self.proj(attention)


class MMDiT(nn.Module):
    """SD3's layout: no input_blocks, and a buffer that is used directly."""

    def __init__(self) -> None:
        super().__init__()
        self.x_embedder = nn.Conv2d(4, WIDTH, 2, stride=2)
        self.register_buffer("pos_embed", torch.randn(1, 36, WIDTH))
        self.context_embedder = nn.Linear(CONTEXT, WIDTH)
        self.joint_blocks = nn.ModuleList([JointBlock() for _ in range(4)])
        self.final = nn.Linear(WIDTH, 16)

    def forward(self, x, timesteps, context, y=None):
        batch, _, high, wide = x.shape
        x = self.x_embedder(x).flatten(2).transpose(1, 2)
        x = torch.cat([x + self.pos_embed[:, : x.shape[1]], self.context_embedder(context)], dim=1)
        for block in self.joint_blocks:
            q, k, v = block.pre_attention(x)
            x = block.post_attention(x, (q @ k.transpose(1, 2)).softmax(-1) @ v)
        x = self.final(x[:, : high * wide // 4])
        return x.transpose(1, 2).reshape(batch, 4, high, wide)


class Wrapper(nn.Module):
    """DiffusionWrapper, OpenAIWrapper, BaseModel."""

    def __init__(self, diffusion_model: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model

    def forward(self, x, t, context, y=None):
        return self.diffusion_model(x, t, context, y)


class SD3Wrapper(Wrapper):
    def __init__(self, diffusion_model: nn.Module) -> None:
        super().__init__(diffusion_model)
        self.register_buffer("sigmas", torch.linspace(0.1, 1.0, 10))

    def forward(self, x, t, context, y=None):
        return super().forward(x, t, context) * self.sigmas[3]


class TextEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(32, CONTEXT)
        self.mix = nn.Linear(CONTEXT, CONTEXT)
        self.final_layer_norm = nn.LayerNorm(CONTEXT)

    def forward(self, tokens):
        return self.mix(self.token_embedding(tokens))


class CondStage(nn.Module):
    """SD1: the transformer is hooked; its last norm is called from outside (clip skip)."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = TextEncoder()

    def forward(self, tokens):
        return self.transformer.final_layer_norm(self.transformer(tokens))


class Conditioner(nn.Module):
    """SDXL: a conditioner of several embedders."""

    def __init__(self) -> None:
        super().__init__()
        self.embedders = nn.ModuleList([CondStage(), CondStage()])

    def forward(self, tokens):
        return sum(embedder(tokens) for embedder in self.embedders)


class SD3Cond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.clip_l = CondStage()
        self.t5xxl = CondStage()

    def forward(self, tokens):
        return self.clip_l(tokens) + self.t5xxl(tokens)

    def medvram_modules(self):
        return [self.clip_l, self.t5xxl]


class VAE(nn.Module):
    """Entered by encode and decode, never by forward."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 3, padding=1)
        self.decoder = nn.Conv2d(4, 3, 3, padding=1)

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)


class Model(nn.Module):
    """The common verbs of LatentDiffusion, DiffusionEngine and SD3Inferencer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.first_stage_model = VAE()
        self.scale = nn.Parameter(torch.ones(1))  # a parameter of the model's own stays on the GPU for good
        self.sd_checkpoint_info = SimpleNamespace(name_for_extra=name, filename=name)

    def apply_model(self, x, t, cond, y=None):
        return self.model(x, t, cond, y)

    def get_learned_conditioning(self, tokens):
        return self.cond_stage_model(tokens)

    def decode_first_stage(self, z):
        return self.first_stage_model.decode(z * self.scale)

    def encode_first_stage(self, x):
        return self.first_stage_model.encode(x)


class SD1(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.model = Wrapper(UNet())
        self.cond_stage_model = CondStage()


class SDXL(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.model = Wrapper(UNet(with_label=True))
        self.conditioner = Conditioner()

    @property
    def cond_stage_model(self):
        return self.conditioner


class SD3(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.model = SD3Wrapper(MMDiT())
        self.text_encoders = SD3Cond()

    @property
    def cond_stage_model(self):
        return self.text_encoders

    def medvram_fields(self):
        return [(self, "first_stage_model"), (self, "text_encoders"), (self, "model")]


KINDS = {"sd1": SD1, "sdxl": SDXL, "sd3": SD3}


def build(kind: str, seed: int = 1) -> Model:
    """A model of `kind` with weights from `seed`, in eval mode, on the CPU."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return KINDS[kind](f"{kind}-{seed}").eval()
