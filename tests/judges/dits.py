"""diffusers' transformers."""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch

from tests.judges.case import Case, ids, rand, steps

HEADS = dict(num_attention_heads=2, attention_head_dim=8, num_layers=3)


def latent(*shape: int, **more: Any) -> dict[str, Any]:
    return dict(hidden_states=rand(*shape), timestep=steps(shape[0]), **more)


def text(length: int = 6, width: int = 16) -> dict[str, Any]:
    return dict(encoder_hidden_states=rand(1, length, width))


def masked(length: int = 6) -> dict[str, Any]:
    return dict(encoder_attention_mask=(torch.arange(length) < length - 1)[None])


CASES = [
    Case(
        "transformer_2d",
        lambda: d.Transformer2DModel(**HEADS, in_channels=16, norm_num_groups=4, cross_attention_dim=16),
        lambda: dict(hidden_states=rand(1, 16, 8, 8), **text()),
    ),
    Case(
        "dit",
        lambda: d.DiTTransformer2DModel(
            **HEADS, in_channels=4, out_channels=8, sample_size=8, num_embeds_ada_norm=20, norm_num_groups=4
        ),
        lambda: latent(1, 4, 8, 8, class_labels=ids(1, below=20)),
    ),
    Case(
        "pixart",
        lambda: d.PixArtTransformer2DModel(
            **dict(HEADS, attention_head_dim=12), in_channels=4, out_channels=8, sample_size=8, cross_attention_dim=24,
            caption_channels=16, use_additional_conditions=True,
        ),
        lambda: latent(
            1, 4, 8, 8, **text(), added_cond_kwargs=dict(resolution=rand(1, 2), aspect_ratio=rand(1, 1))
        ),
    ),
    Case(
        "sd3",
        lambda: d.SD3Transformer2DModel(
            **HEADS, sample_size=8, in_channels=4, out_channels=4, joint_attention_dim=16, caption_projection_dim=16,
            pooled_projection_dim=16, pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        lambda: latent(1, 4, 8, 8, **text(), pooled_projections=rand(1, 16)),
    ),
    Case(
        "flux",
        lambda: d.FluxTransformer2DModel(
            in_channels=4, num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
        ),
        lambda: dict(
            hidden_states=rand(1, 16, 4), timestep=rand(1), guidance=rand(1), **text(), pooled_projections=rand(1, 16),
            img_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
            txt_ids=torch.zeros(6, 3),
        ),
    ),
    Case(
        "hunyuan_dit",
        lambda: d.HunyuanDiT2DModel(
            **dict(HEADS, num_layers=4), in_channels=4, sample_size=8, patch_size=2, hidden_size=16,
            activation_fn="gelu-approximate", cross_attention_dim=16, cross_attention_dim_t5=16,
            pooled_projection_dim=4, text_len=4, text_len_t5=4, learn_sigma=True,
            use_style_cond_and_image_meta_size=False,
        ),
        lambda: dict(
            hidden_states=rand(1, 4, 8, 8), timestep=steps() * 1.0, **text(4), text_embedding_mask=torch.ones(1, 4),
            encoder_hidden_states_t5=rand(1, 4, 16), text_embedding_mask_t5=torch.ones(1, 4),
            image_rotary_emb=[rand(16, 8), rand(16, 8)],
        ),
    ),
    Case(
        "aura_flow",
        lambda: d.AuraFlowTransformer2DModel(
            sample_size=8, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=2,
            attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
            pos_embed_max_size=16,
        ),
        lambda: latent(1, 4, 8, 8, **text()),
    ),
    Case(
        "sana",
        lambda: d.SanaTransformer2DModel(
            **HEADS, in_channels=4, out_channels=4, num_cross_attention_heads=2, cross_attention_head_dim=8,
            cross_attention_dim=16, caption_channels=16, sample_size=8, mlp_ratio=2,
        ),
        lambda: latent(1, 4, 8, 8, **text(), **masked()),
    ),
    Case(
        "lumina2",
        lambda: d.Lumina2Transformer2DModel(
            sample_size=8, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1, num_attention_heads=3,
            num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(64, 64, 64), cap_feat_dim=16,
        ),
        lambda: latent(1, 4, 8, 8, **text(), **masked()),
    ),
    Case(
        "cogvideox",
        lambda: d.CogVideoXTransformer3DModel(
            **HEADS, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=16, sample_width=8,
            sample_height=8, sample_frames=8, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=6,
        ),
        lambda: latent(1, 2, 4, 8, 8, **text()),
    ),
    Case(
        "mochi",
        lambda: d.MochiTransformer3DModel(
            **HEADS, patch_size=2, pooled_projection_dim=16, in_channels=4, text_embed_dim=16, time_embed_dim=8,
            max_sequence_length=6,
        ),
        lambda: latent(1, 4, 2, 8, 8, **text(), **masked()),
    ),
    Case(
        "ltx",
        lambda: d.LTXVideoTransformer3DModel(
            **HEADS, in_channels=4, out_channels=4, cross_attention_dim=16, caption_channels=16
        ),
        lambda: latent(1, 32, 4, **text(), **masked(), num_frames=2, height=4, width=4),
    ),
    Case(
        "wan",
        lambda: d.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=16, freq_dim=16, ffn_dim=32, num_layers=3, cross_attn_norm=True, rope_max_seq_len=32,
        ),
        lambda: latent(1, 4, 2, 8, 8, **text()),
    ),
    Case(
        "hunyuan_video",
        lambda: d.HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
            num_single_layers=2, num_refiner_layers=1, patch_size=1, patch_size_t=1, text_embed_dim=16,
            pooled_projection_dim=8, rope_axes_dim=(2, 4, 4), guidance_embeds=True,
        ),
        lambda: latent(
            1, 4, 1, 4, 4, **text(), **masked(), pooled_projections=rand(1, 8), guidance=torch.full((1,), 6.0)
        ),
    ),
    Case(
        "hidream",  # experts, of which a forward runs some
        lambda: d.HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=4, caption_channels=[16, 16], text_emb_dim=16, num_routed_experts=4,
            num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=(0, 1),
        ),
        lambda: dict(
            hidden_states=rand(1, 4, 8, 8), timesteps=steps(), pooled_embeds=rand(1, 16),
            encoder_hidden_states_t5=rand(1, 6, 16), encoder_hidden_states_llama3=rand(2, 1, 6, 16),
        ),
    ),
    Case(
        "prior",
        lambda: d.PriorTransformer(**HEADS, embedding_dim=8, num_embeddings=5, additional_embeddings=4),
        lambda: dict(
            hidden_states=rand(1, 8), timestep=steps(), proj_embedding=rand(1, 8), encoder_hidden_states=rand(1, 5, 8)
        ),
    ),
]  # fmt: skip
