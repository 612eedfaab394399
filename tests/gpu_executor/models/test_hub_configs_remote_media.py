"""What config.json files of released multimodal checkpoints with code of their own say is understood.

Sizes are what the hub says of the files, or the sum of their parts.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.names import find, required
from gpu_executor.models.registry import Resolved
from gpu_executor.models.spec import LongRopeScaling, Mla, Moe

INTERNVIT_300M = {
    "architectures": ["InternVisionModel"], "attention_dropout": 0.0, "hidden_act": "gelu", "hidden_size": 1024,
    "image_size": 448, "intermediate_size": 4096, "layer_norm_eps": 1e-06, "model_type": "intern_vit_6b",
    "norm_type": "layer_norm", "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24, "patch_size": 14,
    "qk_normalization": False, "qkv_bias": True, "use_flash_attn": True,
}  # fmt: skip
INTERNVIT_6B = INTERNVIT_300M | {
    "hidden_size": 3200, "intermediate_size": 12800, "norm_type": "rms_norm", "num_attention_heads": 25,
    "num_hidden_layers": 45, "qk_normalization": True, "qkv_bias": False,
}  # fmt: skip
INTERNVL = {
    "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": 448, "max_dynamic_patch": 12,
    "min_dynamic_patch": 1, "model_type": "internvl_chat", "pad2square": False, "ps_version": "v2", "select_layer": -1,
    "use_backbone_lora": 0, "use_llm_lora": 0, "use_thumbnail": True, "vision_config": INTERNVIT_300M,
}  # fmt: skip
INTERNLM2_7B = {
    "architectures": ["InternLM2ForCausalLM"], "bias": False, "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "internlm2", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 2.0, "type": "dynamic"},
    "rope_theta": 1000000, "tie_word_embeddings": False, "vocab_size": 92553,
}  # fmt: skip
QWEN2_72B = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 8192, "intermediate_size": 29568,
    "max_position_embeddings": 32768, "max_window_layers": 80, "model_type": "qwen2", "num_attention_heads": 64,
    "num_hidden_layers": 80, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
SIGLIP_980 = {"hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "num_attention_heads": 16,
              "num_hidden_layers": 27, "patch_size": 14}  # fmt: skip
PHI3_VISION = {
    "embd_layer": {"embedding_cls": "image", "hd_transform_order": "sub_glb", "projection_cls": "mlp",
                   "use_hd_transform": True, "with_learnable_separator": True},
    "hidden_act": "silu", "hidden_size": 3072,
    "img_processor": {"image_dim_out": 1024, "model_name": "openai/clip-vit-large-patch14-336",
                      "name": "clip_vision_model", "num_img_tokens": 144},
    "intermediate_size": 8192, "max_position_embeddings": 131072, "model_type": "phi3_v", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1.5] * 48, "short_factor": [1.0] * 48, "type": "su"}, "rope_theta": 10000.0,
    "sliding_window": 262144, "tie_word_embeddings": False, "vocab_size": 32064,
}  # fmt: skip
MOLMO_7B_D = {
    "attention_layer_norm": False, "clip_qkv": None, "embedding_size": 152064, "hidden_size": 3584, "intermediate_size": 37888,
    "layer_norm_eps": 1e-06, "layer_norm_type": "rms", "max_position_embeddings": 4096, "model_type": "molmo",
    "norm_after": False, "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "qkv_bias": True,
    "rope_theta": 1000000.0, "tie_word_embeddings": False, "use_position_ids": True, "vocab_size": 152064,
    "weight_tying": False,
}  # fmt: skip
DEEPSEEK_V2 = {
    "architectures": ["DeepseekV2ForCausalLM"], "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 1,
    "hidden_size": 2048, "intermediate_size": 10944, "kv_lora_rank": 512, "lm_head": True, "max_position_embeddings": 4096,
    "model_type": "deepseek_v2", "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2,
    "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16,
    "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rm_head": False, "topk_group": 1,
    "topk_method": "greedy", "use_mla": True, "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip
DEEPSEEK_TINY = DEEPSEEK_V2 | {
    "hidden_size": 1280, "intermediate_size": 6848, "kv_lora_rank": None, "moe_intermediate_size": 896,
    "num_attention_heads": 10, "num_hidden_layers": 12, "num_key_value_heads": 10, "qk_nope_head_dim": 0,
    "qk_rope_head_dim": 0, "use_mla": False, "v_head_dim": 0, "vocab_size": 129280,
}  # fmt: skip


def deepseek_vl2(text: dict[str, Any]) -> dict[str, Any]:
    return {
        "candidate_resolutions": [[384, 384], [384, 768], [768, 384]], "global_view_pos": "head", "language_config": text,
        "model_type": "deepseek_vl_v2", "tile_tag": "2D",
        "projector_config": {"model_type": "mlp_projector", "n_embed": text["hidden_size"]},
        "vision_config": {"layers": 27, "mlp_ratio": 3.7362, "model_name": "siglip_so400m_patch14_384",
                          "model_type": "vision", "patch_size": 14, "width": 1152},
    }  # fmt: skip


RELEASED = {
    "InternVL2-8B": (8.08, {"architectures": ["InternVLChatModel"], "llm_config": INTERNLM2_7B, **INTERNVL}),
    "InternVL-Chat-V1-5": (25.5, {
        "architectures": ["InternVLChatModel"], **INTERNVL, "vision_config": INTERNVIT_6B,
        "llm_config": INTERNLM2_7B | {"hidden_size": 6144, "intermediate_size": 16384, "num_attention_heads": 48,
                                      "num_hidden_layers": 48},
    }),
    "NVLM-D-72B": (79.4, {
        "architectures": ["NVLM_D_Model"], **INTERNVL, "model_type": "NVLM_D", "max_dynamic_patch": 6,
        "vision_config": INTERNVIT_6B | {"drop_path_rate": 0.4}, "text_config": QWEN2_72B,
    }),
    "h2ovl-mississippi-2b": (2.15, {
        "architectures": ["H2OVLChatModel"], **INTERNVL, "max_dynamic_patch": 6, "use_msac": True,
        "llm_config": {
            "architectures": ["MistralForCausalLM"], "hidden_size": 2560, "intermediate_size": 6912,
            "max_position_embeddings": 8192, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 24,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000, "sliding_window": None,
            "vocab_size": 32010,
        },
    }),
    "Phi-3.5-vision-instruct": (4.15, {"architectures": ["Phi3VForCausalLM"], **PHI3_VISION}),
    "MiniCPM-V-2": (3.43, {
        "architectures": ["MiniCPMV"], "dim_model_base": 256, "drop_vision_last_layer": True, "hidden_act": "silu",
        "hidden_size": 2304, "image_size": 448, "intermediate_size": 5760, "max_position_embeddings": 4096,
        "max_slice_nums": 9, "mm_use_im_start_end": True, "model_type": "minicpmv", "num_attention_heads": 36,
        "num_hidden_layers": 40, "num_key_value_heads": 36, "patch_size": 14, "query_num": 64, "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0, "scale_depth": 1.4, "scale_emb": 12, "scale_resolution": 448, "slice_mode": True,
        "tie_word_embeddings": False, "vision_encoder": "vit_so400m_patch14_siglip_384.webli", "vocab_size": 122753,
    }),
    "MiniCPM-Llama3-V-2_5": (8.54, {
        "architectures": ["MiniCPMV"], "batch_vision_input": True, "drop_vision_last_layer": False, "hidden_act": "silu",
        "hidden_size": 4096, "image_size": 448, "intermediate_size": 14336, "max_position_embeddings": 8192,
        "model_type": "minicpmv", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "patch_size": 14, "query_num": 96, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 500000.0,
        "slice_config": {"max_slice_nums": 9, "patch_size": 14, "model_type": "minicpmv"}, "slice_mode": True,
        "tie_word_embeddings": False, "vision_config": SIGLIP_980 | {"model_type": "idefics2"}, "vocab_size": 128256,
    }),
    "MiniCPM-V-2_6": (8.1, {
        "architectures": ["MiniCPMV"], "batch_vision_input": True, "drop_vision_last_layer": False, "hidden_act": "silu",
        "hidden_size": 3584, "image_size": 448, "intermediate_size": 18944, "max_position_embeddings": 32768,
        "max_window_layers": 28, "model_type": "minicpmv", "num_attention_heads": 28, "num_hidden_layers": 28,
        "num_key_value_heads": 4, "patch_size": 14, "query_num": 64, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "slice_config": {"max_slice_nums": 9, "patch_size": 14, "model_type": "minicpmv"}, "slice_mode": True,
        "sliding_window": 131072, "use_sliding_window": False, "version": 2.6,
        "vision_config": SIGLIP_980 | {"model_type": "siglip"}, "vocab_size": 151666,
    }),
    "deepseek-vl2-tiny": (3.37, deepseek_vl2(DEEPSEEK_TINY)),
    "deepseek-vl2-small": (16.1, deepseek_vl2(DEEPSEEK_V2)),
    "Molmo-7B-D-0924": (8.02, {"architectures": ["MolmoForCausalLM"], **MOLMO_7B_D}),
    "Molmo-7B-O-0924": (7.67, {
        "architectures": ["MolmoForCausalLM"], **MOLMO_7B_D, "attention_layer_norm": True, "embedding_size": 100352,
        "hidden_size": 4096, "intermediate_size": 22016, "norm_after": True, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": None, "qkv_bias": False, "rope_theta": 500000.0,
        "vocab_size": 100278,
    }),
    "glm-4v-9b": (13.9, {
        "architectures": ["ChatGLMModel"], "model_type": "chatglm", "add_bias_linear": False, "add_qkv_bias": True,
        "apply_residual_connection_post_layernorm": False, "ffn_hidden_size": 13696, "hidden_size": 4096,
        "kv_channels": 128, "layernorm_epsilon": 1.5625e-07, "multi_query_attention": True, "multi_query_group_num": 2,
        "num_attention_heads": 32, "num_layers": 40, "original_rope": True, "padded_vocab_size": 151552,
        "post_layer_norm": True, "rmsnorm": True, "rope_ratio": 1, "seq_length": 8192, "tie_word_embeddings": False,
        "boi_token_id": 151339, "eoi_token_id": 151340,
        "vision_config": {"dropout_prob": 0.0, "hidden_act": "gelu", "in_channels": 3, "num_hidden_layers": 63,
                          "hidden_size": 1792, "patch_size": 14, "num_heads": 16, "intermediate_size": 15360,
                          "layer_norm_eps": 1e-06, "num_positions": 6401, "image_size": 1120, "scaling_factor": 8},
    }),
    "Qwen-VL": (9.66, {
        "architectures": ["QWenLMHeadModel"], "hidden_size": 4096, "intermediate_size": 22016, "kv_channels": 128,
        "layer_norm_epsilon": 1e-06, "max_position_embeddings": 8192, "model_type": "qwen", "no_bias": True,
        "num_attention_heads": 32, "num_hidden_layers": 32, "rotary_emb_base": 10000, "rotary_pct": 1.0,
        "seq_length": 2048, "tie_word_embeddings": False, "use_dynamic_ntk": True, "use_logn_attn": True,
        "visual": {"heads": 16, "image_size": 448, "image_start_id": 151857, "layers": 48, "mlp_ratio": 4.9231,
                   "output_dim": 4096, "patch_size": 14, "width": 1664},
        "vocab_size": 151936,
    }),
}  # fmt: skip


def resolved(name: str) -> Resolved:
    return registry.resolve(ConfigReader(RELEASED[name][1]))


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_has_its_size(name: str) -> None:
    found = resolved(name)
    shapes = [find(tensor, found.spec)[1] for tensor in required(found.spec, found.extras)]
    assert sum(map(math.prod, shapes)) / 1e9 == pytest.approx(RELEASED[name][0], rel=0.01)


def test_phi_3_5_vision_is_made_for_long_prompts() -> None:
    spec = resolved("Phi-3.5-vision-instruct").spec
    assert spec.max_model_len == 131072
    assert isinstance(spec.decoder.layers[0].mixer.positions.scaling, LongRopeScaling)


def test_the_first_minicpm_v_has_26_layers_in_its_tower() -> None:
    spec = resolved("MiniCPM-V-2").spec
    assert (spec.tower.vit.num_layers, spec.tower.positions, spec.tower.num_queries) == (26, "drawn", 64)
    assert spec.decoder.embed_scale == 12


def test_deepseek_vl2_has_latents_but_for_the_tiny_one() -> None:
    small, tiny = (resolved(f"deepseek-vl2-{size}").spec.decoder.layers for size in ("small", "tiny"))
    assert isinstance(small[0].mixer, Mla) and not isinstance(tiny[0].mixer, Mla)
    assert isinstance(small[1].mlp, Moe) and small[1].mlp.top_k == tiny[1].mlp.top_k == 6
