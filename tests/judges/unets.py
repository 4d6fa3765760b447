"""diffusers' convolutional models: UNets, control networks, autoencoders."""

from __future__ import annotations

from typing import Any

import diffusers as d

from tests.judges.case import Case, ids, rand, steps

SMALL = dict(block_out_channels=(16, 32), norm_num_groups=8)
SD1 = dict(
    SMALL, layers_per_block=1, cross_attention_dim=16, attention_head_dim=8, sample_size=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)  # fmt: skip
SDXL = dict(
    SD1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
)  # fmt: skip
KANDINSKY = dict(
    SMALL, layers_per_block=1, cross_attention_dim=16, attention_head_dim=8, in_channels=4, out_channels=8,
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    mid_block_type="UNetMidBlock2DSimpleCrossAttn", addition_embed_type="image",
    encoder_hid_dim=24, encoder_hid_dim_type="image_proj", resnet_time_scale_shift="scale_shift",
)  # fmt: skip
VAE = dict(
    SMALL, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
)  # fmt: skip


def condition(**more: Any) -> dict[str, Any]:
    return dict(sample=rand(2, 4, 8, 8), timestep=steps(), encoder_hidden_states=rand(2, 5, 16), **more)


def added() -> dict[str, Any]:
    return dict(added_cond_kwargs=dict(text_embeds=rand(2, 16), time_ids=rand(2, 6)))


def picture(name: str = "sample", channels: int = 3, size: int = 16) -> dict[str, Any]:
    return {name: rand(1, channels, size, size)}


def control_net_xs() -> Any:
    unet = d.UNet2DConditionModel(**dict(SD1, layers_per_block=2))
    adapter = d.ControlNetXSAdapter.from_unet(unet, size_ratio=0.5, conditioning_embedding_out_channels=(8, 8))
    return d.UNetControlNetXSModel.from_unet(unet, adapter)


CASES = [
    Case("sd1_unet", lambda: d.UNet2DConditionModel(**SD1), condition),
    Case("sdxl_unet", lambda: d.UNet2DConditionModel(**SDXL), lambda: condition(**added())),
    Case(
        "kandinsky_unet",
        lambda: d.UNet2DConditionModel(**KANDINSKY),
        lambda: dict(
            sample=rand(1, 4, 8, 8), timestep=steps(), encoder_hidden_states=None,
            added_cond_kwargs=dict(image_embeds=rand(1, 24)),
        ),
    ),
    Case(
        "unet_2d",
        lambda: d.UNet2DModel(
            **SMALL, sample_size=8, layers_per_block=1, attention_head_dim=8, num_class_embeds=7,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ),
        lambda: dict(picture(size=8), timestep=steps(), class_labels=ids(1, below=7)),
    ),
    Case(
        "unet_3d",
        lambda: d.UNet3DConditionModel(
            **SMALL, layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        ),
        lambda: dict(sample=rand(1, 4, 2, 8, 8), timestep=steps(), encoder_hidden_states=rand(1, 5, 16)),
    ),
    Case(
        "unet_motion",
        lambda: d.UNetMotionModel(
            **SMALL, layers_per_block=1, cross_attention_dim=16, num_attention_heads=2, motion_num_attention_heads=2,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        ),
        lambda: dict(sample=rand(1, 4, 2, 8, 8), timestep=steps(), encoder_hidden_states=rand(2, 5, 16)),
    ),
    Case(
        "stable_cascade_unet",
        lambda: d.StableCascadeUNet(
            in_channels=4, out_channels=4, timestep_ratio_embedding_dim=8, patch_size=1, conditioning_dim=16,
            block_out_channels=(16, 32), num_attention_heads=(0, 4), down_num_layers_per_block=(1, 2),
            up_num_layers_per_block=(2, 1), down_blocks_repeat_mappers=(1, 1), up_blocks_repeat_mappers=(2, 1),
            block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                                   ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")),
            clip_text_in_channels=16, clip_text_pooled_in_channels=16, clip_image_in_channels=16, clip_seq=2,
            effnet_in_channels=8, dropout=(0.1, 0.1), self_attn=True, timestep_conditioning_type=("sca", "crp"),
            switch_level=(False,),
        ),
        lambda: dict(
            sample=rand(1, 4, 8, 8), timestep_ratio=rand(1), clip_text_pooled=rand(1, 1, 16), clip_text=rand(1, 5, 16),
            clip_img=rand(1, 1, 16), effnet=rand(1, 8, 4, 4),
        ),
    ),
    Case(
        "uvit_2d",
        lambda: d.UVit2DModel(
            hidden_size=32, cond_embed_dim=16, micro_cond_encode_dim=4, micro_cond_embed_dim=20, encoder_hidden_size=16,
            vocab_size=66, codebook_size=64, block_out_channels=32, num_res_blocks=1, num_hidden_layers=2,
            num_attention_heads=4, block_num_heads=4, sample_size=8, in_channels=32, intermediate_size=64,
        ),
        lambda: dict(
            input_ids=ids(1, 8, 8, below=64), encoder_hidden_states=rand(1, 5, 16), pooled_text_emb=rand(1, 16),
            micro_conds=rand(1, 5),
        ),
    ),
    Case(
        "controlnet",
        lambda: d.ControlNetModel(
            **{key: value for key, value in SD1.items() if key not in ("sample_size", "up_block_types")},
            conditioning_embedding_out_channels=(8, 16),
        ),
        lambda: condition(controlnet_cond=rand(2, 3, 16, 16), conditioning_scale=0.7),
    ),
    Case("controlnet_xs", control_net_xs, lambda: condition(controlnet_cond=rand(2, 3, 16, 16))),
    Case(
        "t2i_adapter",
        lambda: d.T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter_xl"),
        lambda: dict(x=rand(1, 3, 16, 16)),
    ),
    Case("autoencoder_kl", lambda: d.AutoencoderKL(**VAE, layers_per_block=1), picture),
    Case(
        "asymmetric_autoencoder",
        lambda: d.AsymmetricAutoencoderKL(
            down_block_types=VAE["down_block_types"], up_block_types=VAE["up_block_types"], norm_num_groups=8,
            down_block_out_channels=(16, 32), up_block_out_channels=(16, 32),
        ),
        lambda: dict(picture(), mask=rand(1, 1, 16, 16)),
    ),
    Case(
        "autoencoder_tiny",
        lambda: d.AutoencoderTiny(
            encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16), num_encoder_blocks=(1, 2),
            num_decoder_blocks=(2, 1),
        ),
        picture,
    ),
    Case(
        "vq_model",
        lambda: d.VQModel(**dict(VAE, block_out_channels=(32, 32)), num_vq_embeddings=32, norm_type="spatial"),
        picture,
    ),
    Case(
        "consistency_decoder",
        lambda: d.ConsistencyDecoderVAE(
            encoder_block_out_channels=(16, 32), encoder_down_block_types=VAE["down_block_types"],
            encoder_layers_per_block=1, encoder_norm_num_groups=8, encoder_out_channels=4, latent_channels=4,
            decoder_block_out_channels=(16, 32), decoder_layers_per_block=1, decoder_norm_num_groups=8,
            decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2, decoder_num_train_timesteps=1024,
            decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
        ),
        picture,
    ),
    Case(
        "temporal_decoder",
        lambda: d.AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32), down_block_types=VAE["down_block_types"], layers_per_block=1
        ),
        lambda: dict(picture(), num_frames=1),
    ),
    Case(
        "autoencoder_dc",
        lambda: d.AutoencoderDC(
            latent_channels=4, attention_head_dim=4, encoder_block_out_channels=(8, 16),
            encoder_layers_per_block=(1, 1), decoder_block_out_channels=(8, 16), decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
        ),
        picture,
    ),
    Case(
        "autoencoder_wan",
        lambda: d.AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True]),
        lambda: dict(sample=rand(1, 3, 5, 16, 16)),
    ),
    Case(
        "autoencoder_oobleck",  # weight norm everywhere
        lambda: d.AutoencoderOobleck(
            encoder_hidden_size=8, downsampling_ratios=[2, 4], channel_multiples=[1, 2], decoder_channels=8,
            decoder_input_channels=4,
        ),
        lambda: dict(sample=rand(1, 2, 128)),
    ),
]  # fmt: skip
