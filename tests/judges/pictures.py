"""transformers' models of pictures."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

from tests.judges.case import Case, ids, rand
from tests.judges.languages import BERT, CLIP_TEXT

VIT = dict(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4,
)  # fmt: skip
TEXT = dict(CLIP_TEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def pixels(size: int = 16) -> dict[str, Any]:
    return dict(pixel_values=rand(1, 3, size, size))


def swin() -> t.SwinConfig:
    return t.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4)


def dinov2(**more: Any) -> t.Dinov2Config:
    return t.Dinov2Config(**{key: value for key, value in VIT.items() if key != "intermediate_size"}, **more)


CASES = [
    Case("clip_vision", lambda: t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(**VIT, projection_dim=16)), pixels),
    Case(
        "clip",
        lambda: t.CLIPModel(t.CLIPConfig(text_config=CLIP_TEXT, vision_config=VIT, projection_dim=16)),
        lambda: dict(pixels(), input_ids=ids(2, 7)),
    ),
    Case(
        "siglip",  # pools by an attention whose projection is never called
        lambda: t.SiglipModel(t.SiglipConfig(text_config=TEXT, vision_config=VIT)),
        lambda: dict(pixels(), input_ids=ids(2, 16)),
    ),
    Case(
        "blip",
        lambda: t.BlipForConditionalGeneration(
            t.BlipConfig(text_config=dict(TEXT, encoder_hidden_size=32, is_decoder=True), vision_config=VIT)
        ),
        lambda: dict(pixels(), input_ids=ids(1, 7)),
    ),
    Case(
        "blip2",  # a parameter of its own
        lambda: t.Blip2ForConditionalGeneration(
            t.Blip2Config(
                vision_config=dict(VIT), qformer_config=dict(BERT, encoder_hidden_size=32), num_query_tokens=3,
                text_config=dict(
                    model_type="opt", vocab_size=99, hidden_size=32, num_hidden_layers=2, ffn_dim=32,
                    num_attention_heads=4, word_embed_proj_dim=32,
                ),
                image_token_index=98,
            )
        ),
        lambda: dict(pixels(), input_ids=torch.cat([torch.full((1, 3), 98), ids(1, 4, below=90)], 1)),
    ),
    Case("vit", lambda: t.ViTForImageClassification(t.ViTConfig(**VIT)), pixels),
    Case("dinov2", lambda: t.Dinov2Model(dinov2()), lambda: pixels(24)),
    Case(
        "beit",  # biases by relative position, in every layer
        lambda: t.BeitModel(
            t.BeitConfig(**VIT, use_relative_position_bias=True, use_shared_relative_position_bias=True)
        ),
        pixels,
    ),
    Case(
        "resnet",
        lambda: t.ResNetForImageClassification(
            t.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], layer_type="bottleneck")
        ),
        lambda: pixels(32),
    ),
    Case(
        "convnext",
        lambda: t.ConvNextV2Model(t.ConvNextV2Config(hidden_sizes=[8, 16], depths=[2, 2], num_stages=2)),
        pixels,
    ),
    Case("swin", lambda: t.SwinModel(swin()), lambda: pixels(32)),
    Case(
        "segformer",
        lambda: t.SegformerForSemanticSegmentation(
            t.SegformerConfig(
                num_encoder_blocks=2, depths=[1, 2], sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3],
                strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16,
            )
        ),
        lambda: pixels(32),
    ),
    Case(
        "depth_anything",
        lambda: t.DepthAnythingForDepthEstimation(
            t.DepthAnythingConfig(
                backbone_config=dinov2(out_features=["stage1", "stage2"], reshape_hidden_states=False), patch_size=4,
                reassemble_hidden_size=32, reassemble_factors=[2, 1], neck_hidden_sizes=[8, 16], fusion_hidden_size=8,
                head_hidden_size=8, depth_estimation_type="metric", max_depth=9,
            )
        ),
        pixels,
    ),
    Case(
        "dpt",
        lambda: t.DPTForSemanticSegmentation(
            t.DPTConfig(
                **dict(VIT, num_hidden_layers=4), backbone_out_indices=[0, 1, 2, 3],
                neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8,
            )
        ),
        lambda: pixels(16),
    ),
    Case(
        "detr",  # takes the weight of an embedding that it never calls; frozen batch norm
        lambda: t.DetrForObjectDetection(
            t.DetrConfig(
                use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=16, num_queries=5,
                backbone_config=t.ResNetConfig(
                    embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1] * 4, layer_type="basic",
                    out_features=["stage4"],
                ),
                encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
                encoder_ffn_dim=16, decoder_ffn_dim=16,
            )
        ),
        lambda: pixels(64),
    ),
    Case(
        "sam",
        lambda: t.SamModel(
            t.SamConfig(
                vision_config=dict(
                    hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=32,
                    patch_size=4, global_attn_indexes=[1], window_size=4, mlp_dim=48, num_pos_feats=8,
                ),
                prompt_encoder_config=dict(hidden_size=16, image_size=32, patch_size=4, image_embedding_size=8,
                                           mask_input_channels=4),
                mask_decoder_config=dict(hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16),
            )
        ),
        lambda: dict(pixels(32), input_points=rand(1, 1, 2, 2).abs() * 9),
    ),
    Case(
        "perceiver",
        lambda: t.PerceiverModel(
            t.PerceiverConfig(
                d_model=16, d_latents=24, num_latents=6, num_self_attends_per_block=2, num_blocks=2,
                num_self_attention_heads=2, num_cross_attention_heads=2,
            )
        ),
        lambda: dict(inputs=rand(1, 10, 16)),
    ),
]  # fmt: skip
