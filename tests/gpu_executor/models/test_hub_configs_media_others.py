"""What config.json files of released models say that are no kin of Llava, and what transformers 5 makes of such files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import transformers

from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import tower_shapes
from gpu_executor.models.spec import ModelSpec, Moe
from tests.gpu_executor.models.checkpoints import Case
from tests.gpu_executor.models.media_cases import blip2, chameleon, fuyu, idefics3, mllama, qwen2_audio
from tests.gpu_executor.models.test_hub_configs_media import num_parameters, spec_of
from tests.gpu_executor.models.test_qwen2_vl import CASE as QWEN2_VL

CASES = [
    qwen2_audio.QWEN2_AUDIO.case, idefics3.IDEFICS3.case, idefics3.ARIA.case, blip2.BLIP2.case, fuyu.FUYU.case, QWEN2_VL,
    chameleon.CHAMELEON.case, chameleon.CHAMELEON_SWIN.case, mllama.MLLAMA.case,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_transformers_saves_is_the_same_model(case: Case, tmp_path: Path) -> None:
    getattr(transformers, case.architecture).config_class.from_dict(case.config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text()) | {"architectures": [case.architecture]}
    assert registry.resolve(ConfigReader(saved)).spec == spec_of(case.architecture, **case.config)


def tower_size(spec: ModelSpec) -> float:
    """Parameters of the tower and its projector, in millions."""
    return sum(math.prod(shape) for shape in tower_shapes(spec).values()) / 1e6


def test_qwen2_vl_2b() -> None:
    spec = spec_of(
        "Qwen2VLForConditionalGeneration", hidden_size=1536, intermediate_size=8960, max_position_embeddings=32768,
        max_window_layers=28, num_attention_heads=12, num_hidden_layers=28, num_key_value_heads=2, rms_norm_eps=1e-6,
        rope_theta=1000000.0, sliding_window=32768, tie_word_embeddings=True, use_sliding_window=False, vocab_size=151936,
        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]}, image_token_id=151655, video_token_id=151656,
        vision_config={
            "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 1536,
            "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
        },
    )  # fmt: skip
    assert 1.5e9 < num_parameters(spec) < 1.6e9
    assert 660 < tower_size(spec) < 680
    rope = spec.decoder.layers[0].mixer.positions
    assert (rope.sections, rope.theta, spec.decoder.layers[0].mixer.window) == ((16, 24, 24), 1e6, None)


def test_qwen2_audio_leaves_out_what_qwen2_is_by_default() -> None:
    spec = spec_of(
        "Qwen2AudioForConditionalGeneration", audio_token_index=151646,
        text_config={
            "intermediate_size": 11008, "max_position_embeddings": 8192, "model_type": "qwen2", "rms_norm_eps": 1e-05,
            "rope_theta": 10000, "sliding_window": 32768, "use_mrope": False, "vocab_size": 156032,
        },
        audio_config={
            "activation_dropout": 0.0, "activation_function": "gelu", "d_model": 1280, "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120, "encoder_layerdrop": 0.0, "encoder_layers": 32, "max_source_positions": 1500,
            "model_type": "qwen2_audio_encoder", "num_mel_bins": 128, "scale_embedding": False,
        },
    )  # fmt: skip
    assert 7.5e9 < num_parameters(spec) < 8e9
    assert 635 < tower_size(spec) < 645  # of Whisper large, and a linear
    assert tower_shapes(spec)["projector.weight"] == (4096, 1280)


def test_ultravox_with_the_sections_of_its_parts() -> None:
    """fixie-ai/ultravox-v0_5-llama-3_2-1b beside Llama 3.2 and Whisper large v3 turbo."""
    spec = spec_of(
        "UltravoxModel", audio_model_id="openai/whisper-large-v3-turbo", hidden_size=4096, projector_act="swiglu",
        projector_ln_mid=True, stack_factor=8, text_model_id="meta-llama/Llama-3.2-1B-Instruct", norm_init=0.4,
        audio_latency_block_size=None,
        text_config={
            "architectures": ["LlamaForCausalLM"], "attention_bias": False, "head_dim": 64, "hidden_size": 2048,
            "intermediate_size": 8192, "max_position_embeddings": 131072, "model_type": "llama", "num_attention_heads": 32,
            "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
            "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                             "original_max_position_embeddings": 8192, "rope_type": "llama3"},
            "tie_word_embeddings": True, "vocab_size": 128256,
        },
        audio_config={
            "architectures": ["WhisperForConditionalGeneration"], "d_model": 1280, "decoder_layers": 4,
            "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "encoder_layers": 32, "max_source_positions": 1500,
            "model_type": "whisper", "num_hidden_layers": 32, "num_mel_bins": 128, "activation_function": "gelu",
        },
    )  # fmt: skip
    assert 1.2e9 < num_parameters(spec) < 1.3e9
    assert tower_shapes(spec)["linear1.weight"] == (4096, 10240)
    assert tower_shapes(spec)["linear2.weight"] == (2048, 2048)
    assert "norm_post.weight" not in tower_shapes(spec)


def test_idefics3_8b_names_an_architecture_of_its_makers() -> None:
    spec = spec_of(
        "Idefics3ForConditionalGeneration", image_token_id=128257, scale_factor=2, tie_word_embeddings=False,
        text_config={
            "architectures": ["VLlama3ForCausalLM"], "intermediate_size": 14336, "max_position_embeddings": 10240,
            "model_type": "llama", "num_key_value_heads": 8, "pad_token_id": 128002, "rope_theta": 500000.0,
            "rms_norm_eps": 1e-05, "vocab_size": 128259,
        },
        vision_config={
            "hidden_size": 1152, "image_size": 364, "intermediate_size": 4304, "model_type": "idefics3",
            "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "size": {"longest_edge": 1820},
        },
    )  # fmt: skip
    assert 7.9e9 < num_parameters(spec) < 8.2e9
    assert 425 < tower_size(spec) < 435
    assert tower_shapes(spec)["vision.positions"] == (26 * 26, 1152)


def test_blip2_opt_2_7b() -> None:
    spec = spec_of(
        "Blip2ForConditionalGeneration", model_type="blip-2", num_query_tokens=32, image_token_index=50265,
        qformer_config={"model_type": "blip_2_qformer", "classifier_dropout": None},
        text_config={
            "activation_dropout": 0.0, "architectures": ["OPTForCausalLM"], "eos_token_id": 50118, "ffn_dim": 10240,
            "hidden_size": 2560, "model_type": "opt", "num_attention_heads": 32, "num_hidden_layers": 32, "prefix": "</s>",
            "torch_dtype": "float16", "word_embed_proj_dim": 2560,
        },
        vision_config={"dropout": 0.0, "model_type": "blip_2_vision_model", "num_channels": 3, "projection_dim": 512},
    )  # fmt: skip
    assert (len(spec.decoder.layers), spec.vocab_size, spec.max_model_len) == (32, 50272, 2048)
    assert 1085 < tower_size(spec) < 1100  # 986 of EVA, 105 of the Q-Former, and a linear
    assert tower_shapes(spec)["qformer.layers.10.cross.k.weight"] == (768, 1408)


def test_aria() -> None:
    spec = spec_of(
        "AriaForConditionalGeneration", image_token_index=9, tie_word_embeddings=False, vision_feature_layer=-1,
        projector_patch_to_query_dict={"1225": 128, "4900": 256},
        text_config={
            "hidden_size": 2560, "intermediate_size": 1664, "max_position_embeddings": 65536, "model_type": "aria_text",
            "moe_num_experts": 64, "moe_num_shared_experts": 2, "moe_topk": 6, "num_attention_heads": 20,
            "num_hidden_layers": 28, "num_key_value_heads": 20, "rms_norm_eps": 1e-06, "rope_theta": 5000000,
            "vocab_size": 100352,
        },
        vision_config={
            "hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "model_type": "idefics3_vision",
            "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
        },
    )  # fmt: skip
    moe = spec.decoder.layers[0].mlp
    assert isinstance(moe, Moe)
    assert (moe.num_experts, moe.top_k, moe.size, moe.shared_size) == (64, 6, 1664, 3328)
    assert 430 < tower_size(spec) < 470
    assert tower_shapes(spec)["vision.positions"] == (70 * 70, 1152)


def test_fuyu_8b() -> None:
    config: dict[str, Any] = {
        "hidden_act": "relu2", "hidden_size": 4096, "image_size": 300, "intermediate_size": 16384, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 16384, "model_type": "fuyu", "num_attention_heads": 64, "num_channels": 3,
        "num_hidden_layers": 36, "partial_rotary_factor": 0.5, "patch_size": 30, "qk_layernorm": True, "rope_scaling": None,
        "rope_theta": 25000.0, "tie_word_embeddings": False, "vocab_size": 262144,
    }  # fmt: skip
    spec = spec_of("FuyuForCausalLM", **config)
    mixer = spec.decoder.layers[0].mixer
    assert (mixer.positions.dim, mixer.positions.theta, mixer.head_dim) == (32, 25000.0, 64)
    assert tower_shapes(spec)["projector.weight"] == (4096, 2700)
    nested = {key: value for key, value in config.items() if key not in ("patch_size", "num_channels", "image_size")}
    assert spec_of("FuyuForCausalLM", text_config=nested, patch_size=30) == spec


def test_chameleon_7b_says_null_where_it_scales_no_rope() -> None:
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    codes = {f"IMGIMG{str(code).translate(letters)}Z": 4 + code for code in range(8192)}
    spec = spec_of(
        "ChameleonForConditionalGeneration", attention_bias=False, hidden_size=4096, intermediate_size=11008,
        max_position_embeddings=4096, mlp_bias=False, model_parallel_size=1, num_attention_heads=32, num_hidden_layers=32,
        num_key_value_heads=32, rms_norm_eps=1e-05, rope_scaling=None, rope_theta=10000, swin_norm=False, vocab_size=65536,
        tie_word_embeddings=False, vocabulary_map={"<image>": 8711, "<racm3:break>": 8197, **codes},
        vq_config={"attn_resolutions": None, "attn_type": "vanilla", "channel_multiplier": [1, 1, 2, 2, 4]},
    )  # fmt: skip
    assert 6.9e9 < num_parameters(spec) < 7.1e9
    assert 29 < tower_size(spec) < 30
    assert spec.decoder.masked_ids == tuple(range(4, 8196)) and spec.tower.token_ids == spec.decoder.masked_ids
    assert (
        not any(spec.tower.attends) and spec.tower.middle_attends and spec.tower.channels == (128, 128, 256, 256, 512)
    )


def test_llama_3_2_vision_11b() -> None:
    spec = spec_of(
        "MllamaForConditionalGeneration", image_token_index=128256,
        text_config={
            "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38], "dropout": 0, "eos_token_id": [128001, 128008, 128009],
            "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131072,
            "model_type": "mllama_text_model", "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False, "vocab_size": 128256,
            "rope_scaling": {
                "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
        vision_config={
            "attention_heads": 16, "hidden_act": "gelu", "hidden_size": 1280, "image_size": 560, "intermediate_size": 5120,
            "intermediate_layers_indices": [3, 7, 15, 23, 30], "max_num_tiles": 4, "model_type": "mllama_vision_model",
            "norm_eps": 1e-05, "num_channels": 3, "num_global_layers": 8, "num_hidden_layers": 32, "patch_size": 14,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
            "vision_output_dim": 7680,
        },
    )  # fmt: skip
    assert 9.7e9 < num_parameters(spec) < 9.9e9
    assert 890 < tower_size(spec) < 900
    assert spec.encoded_layers == (3, 8, 13, 18, 23, 28, 33, 38) and spec.reads_media
    assert (spec.tower.tile_rows, spec.most_encoded) == (1601, 4 * 1601)
    assert spec.vocab_size == 128264 and spec.decoder.masked_ids == tuple(range(128256, 128264))
