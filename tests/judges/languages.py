"""transformers' models of text and sound."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

from tests.judges.case import Case, ids, rand

BERT = dict(
    vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=40,
)  # fmt: skip
LLAMA = dict(BERT, num_key_value_heads=2, head_dim=8)
MOE = dict(LLAMA, num_experts_per_tok=2, moe_intermediate_size=24)
T5 = dict(
    vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
    decoder_start_token_id=0,
)  # fmt: skip
CLIP_TEXT = dict(
    vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, projection_dim=16,
    max_position_embeddings=16,
)  # fmt: skip
WAV = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=(16, 16),
    conv_stride=(4, 2), conv_kernel=(8, 3), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, vocab_size=30,
    num_feat_extract_layers=2, mask_time_prob=0.0,
)  # fmt: skip


def tokens(length: int = 7) -> dict[str, Any]:
    """The last one is padding for half of the batch."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, -1] = 0
    return dict(input_ids=ids(2, length), attention_mask=mask)


def both_sides() -> dict[str, Any]:
    return dict(tokens(), decoder_input_ids=ids(2, 5))


CASES = [
    Case("clip_text", lambda: t.CLIPTextModel(t.CLIPTextConfig(**CLIP_TEXT)), tokens),
    Case(
        "clip_text_projection",
        lambda: t.CLIPTextModelWithProjection(t.CLIPTextConfig(**CLIP_TEXT, hidden_act="gelu")),
        lambda: dict(tokens(), output_hidden_states=True),
    ),
    Case("t5_encoder", lambda: t.T5EncoderModel(t.T5Config(**T5)), tokens),
    Case("t5", lambda: t.T5ForConditionalGeneration(t.T5Config(**T5)), both_sides),  # embeddings tied thrice
    Case("bert", lambda: t.BertForMaskedLM(t.BertConfig(**BERT)), tokens),
    Case("albert", lambda: t.AlbertModel(t.AlbertConfig(**BERT, embedding_size=16)), tokens),  # one layer, three times
    Case(
        "deberta",
        lambda: t.DebertaV2Model(
            t.DebertaV2Config(
                **BERT, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8,
                norm_rel_ebd="layer_norm", share_att_key=True,
            )
        ),
        tokens,
    ),
    Case(
        "xlnet",
        lambda: t.XLNetModel(t.XLNetConfig(vocab_size=99, d_model=32, n_layer=3, n_head=4, d_inner=48)),
        tokens,
    ),
    Case("gpt2", lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=99, n_embd=32, n_layer=3, n_head=4)), tokens),
    Case("llama", lambda: t.LlamaForCausalLM(t.LlamaConfig(**LLAMA)), tokens),
    Case("gemma2", lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**LLAMA, sliding_window=4)), tokens),
    Case("phi", lambda: t.PhiForCausalLM(t.PhiConfig(**BERT, partial_rotary_factor=0.5)), tokens),
    Case(
        "falcon",
        lambda: t.FalconForCausalLM(t.FalconConfig(**BERT, alibi=True, new_decoder_architecture=True)),
        tokens,
    ),
    Case("mixtral", lambda: t.MixtralForCausalLM(t.MixtralConfig(**LLAMA, num_local_experts=6)), lambda: tokens(2)),
    Case("qwen3_moe", lambda: t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**MOE, num_experts=6)), lambda: tokens(2)),
    Case(
        "gpt_oss",  # experts that are slices of one parameter
        lambda: t.GptOssForCausalLM(
            t.GptOssConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2, sliding_window=4, rope_scaling=None)
        ),
        tokens,
    ),
    Case(
        "llama4",  # experts in parameters; asks where its embedding is
        lambda: t.Llama4ForCausalLM(
            t.Llama4TextConfig(
                **dict(LLAMA, intermediate_size=24), intermediate_size_mlp=32, num_local_experts=4, pad_token_id=0
            )
        ),
        lambda: dict(input_ids=ids(2, 7)),
    ),
    Case(
        "mamba",
        lambda: t.MambaForCausalLM(t.MambaConfig(vocab_size=99, hidden_size=32, state_size=8, num_hidden_layers=3)),
        lambda: dict(input_ids=ids(2, 7)),
    ),
    Case(
        "rwkv",
        lambda: t.RwkvModel(t.RwkvConfig(vocab_size=99, hidden_size=32, num_hidden_layers=3, attention_hidden_size=32)),
        lambda: dict(input_ids=ids(2, 7)),
    ),
    Case(
        "bart",
        lambda: t.BartForConditionalGeneration(
            t.BartConfig(
                vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=24,
            )
        ),
        both_sides,
    ),
    Case(
        "whisper",
        lambda: t.WhisperForConditionalGeneration(
            t.WhisperConfig(
                vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8,
                max_source_positions=20, max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                decoder_start_token_id=1,
            )
        ),
        lambda: dict(input_features=rand(1, 8, 40), decoder_input_ids=ids(1, 5)),
    ),
    Case("wav2vec2", lambda: t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**WAV)), lambda: dict(input_values=rand(1, 400))),
    Case(
        "encodec",  # weight norm, and an LSTM
        lambda: t.EncodecModel(
            t.EncodecConfig(
                num_filters=8, hidden_size=16, upsampling_ratios=[4, 2], codebook_size=16, codebook_dim=16,
                sampling_rate=80, target_bandwidths=[0.08],
            )
        ),
        lambda: dict(input_values=rand(1, 1, 80)),
    ),
]  # fmt: skip
