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
    """CLIP of transformers: called as a whole, though its last norm is also called from outside (clip skip)."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.token_embedding = nn.Embedding(32, CONTEXT)
        self.embeddings.register_buffer("position_ids", torch.arange(32))
        self.mix = nn.Linear(CONTEXT, CONTEXT)
        self.final_layer_norm = nn.LayerNorm(CONTEXT)

    def forward(self, tokens):
        assert len(self.embeddings.position_ids) >= tokens.shape[1]
        return self.mix(self.embeddings.token_embedding(tokens))


class FrozenCLIP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = TextEncoder()

    def encode(self, tokens):
        return self.transformer.final_layer_norm(self.transformer(tokens))

    def embedding_owner(self):
        return self.transformer.embeddings

    def forward(self, tokens):
        return self.encode(tokens)


class OpenClip(nn.Module):
    """Never called itself, and some of its parameters are read directly."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(32, CONTEXT)
        self.positional_embedding = nn.Parameter(torch.randn(32, CONTEXT))
        self.attention = nn.MultiheadAttention(CONTEXT, 2, batch_first=True)
        self.ln_final = nn.LayerNorm(CONTEXT)
        self.text_projection = nn.Parameter(torch.randn(CONTEXT, CONTEXT))


class FrozenOpenCLIP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = OpenClip()

    def encode_with_transformer(self, tokens):
        x = self.model.token_embedding(tokens) + self.model.positional_embedding[: tokens.shape[1]]
        x = self.model.attention(x, x, x, need_weights=False)[0]
        return self.model.ln_final(x) @ self.model.text_projection

    def encode(self, tokens):
        return self.encode_with_transformer(tokens)

    def embedding_owner(self):
        return self.model

    def forward(self, tokens):
        return self.encode(tokens)


class SizeEmbedder(nn.Module):
    """Of the conditioner's embedders one has no weights."""

    def forward(self, tokens):
        return torch.zeros(())


class EmbeddingsWithFixes(nn.Module):
    """The host's hijack puts it around the token embedding."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, tokens):
        return self.wrapped(tokens)


class CustomWords(nn.Module):
    """The host's hijack puts it around a text encoder."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped
        owner = wrapped.embedding_owner()
        owner.token_embedding = EmbeddingsWithFixes(owner.token_embedding)

    def forward(self, tokens):
        return self.wrapped.encode(tokens) * 1.1

    def unwrap(self) -> nn.Module:
        owner = self.wrapped.embedding_owner()
        owner.token_embedding = owner.token_embedding.wrapped
        return self.wrapped

    def encode_embedding_init_text(self):
        """Textual inversion: the ids go to where the weight is seen, then the leaf is called from outside."""
        embedding = self.wrapped.embedding_owner().token_embedding.wrapped
        return embedding(torch.arange(3).to(embedding.weight.device))


class Conditioner(nn.Module):
    """SDXL: a conditioner of several embedders."""

    def __init__(self) -> None:
        super().__init__()
        self.embedders = nn.ModuleList([FrozenCLIP(), FrozenOpenCLIP(), SizeEmbedder()])

    def forward(self, tokens):
        return sum(embedder(tokens) for embedder in self.embedders)


class SD3Clip(nn.Module):
    """Asks its embedding where it lies, and brings the tokens there."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = TextEncoder()
        self.logit_scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens):
        tokens = torch.asarray(tokens, device=self.transformer.embeddings.token_embedding.weight.device)
        return self.transformer(tokens)


class SD3Cond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.clip_g = SD3Clip()
        self.clip_l = SD3Clip()
        self.t5xxl = SD3Clip()

    def forward(self, tokens):
        return self.clip_l(tokens) + self.clip_g(tokens) + self.t5xxl(tokens)

    def medvram_modules(self):
        return [self.clip_g, self.clip_l, self.t5xxl]


def _half(in_width: int, out_width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_width, WIDTH, 3, padding=1), nn.GroupNorm(2, WIDTH), nn.Conv2d(WIDTH, out_width, 3, padding=1)
    )


class VAE(nn.Module):
    """Entered by encode and decode, never by forward."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _half(3, 4)
        self.decoder = _half(4, 3)
        self.quant_conv = nn.Conv2d(4, 4, 1)
        self.post_quant_conv = nn.Conv2d(4, 4, 1)

    def encode(self, x):
        return self.quant_conv(self.encoder(x))

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))


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
        self.cond_stage_model = FrozenCLIP()


class SD2(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.model = Wrapper(UNet())
        self.cond_stage_model = FrozenOpenCLIP()


class SDXL(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.model = Wrapper(UNet(with_label=True))
        self.conditioner = Conditioner()


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


KINDS = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL, "sd3": SD3}


def build(kind: str, seed: int = 1) -> Model:
    """A model of `kind` with weights from `seed`, in eval mode, on the CPU, before the host's hijack."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return KINDS[kind](f"{kind}-{seed}").eval()


def hijack(model: Model) -> None:
    """What the host does to a model's text encoders after it was set up for low VRAM."""
    if isinstance(model, SDXL):
        embedders = model.conditioner.embedders
        for index in range(2):
            embedders[index] = CustomWords(embedders[index])
        model.cond_stage_model = model.conditioner
    elif not isinstance(model, SD3):
        model.cond_stage_model = CustomWords(model.cond_stage_model)


def undo_hijack(model: Model) -> None:
    """Before weights are loaded in place, or another VAE."""
    if isinstance(model, SDXL):
        embedders = model.conditioner.embedders
        for index in range(2):
            embedders[index] = embedders[index].unwrap()
        del model.cond_stage_model
    elif not isinstance(model, SD3):
        model.cond_stage_model = model.cond_stage_model.unwrap()
