"""What released mixtures of experts and models with latent attention say in config.json is understood."""

from __future__ import annotations

import math
from typing import Any

import pytest

from forebay.errors import CheckpointError
from gpu_executor.models.spec import Attention, LongRopeScaling, Mla, Mlp, Moe, Norm, Rope, YarnScaling
from tests.gpu_executor.models.test_hub_configs import attention_of, spec_of

DEEPSEEK_V2_LITE = {
    "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27, "num_attention_heads": 16,
    "num_key_value_heads": 16, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "rope_theta": 10000, "hidden_act": "silu",
    "attention_bias": False, "first_k_dense_replace": 1, "moe_layer_freq": 1, "moe_intermediate_size": 1408, "n_group": 1,
    "topk_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": False, "num_experts_per_tok": 6,
    "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_method": "greedy", "tie_word_embeddings": False,
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707,
                     "original_max_position_embeddings": 4096},
}  # fmt: skip
DEEPSEEK_V3 = DEEPSEEK_V2_LITE | {
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "first_k_dense_replace": 3, "moe_intermediate_size": 2048, "n_group": 8, "topk_group": 4,
    "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True, "num_experts_per_tok": 8, "q_lora_rank": 1536,
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "num_nextn_predict_layers": 1,
    "rope_scaling": DEEPSEEK_V2_LITE["rope_scaling"] | {"mscale": 1.0, "mscale_all_dim": 1.0},
}  # fmt: skip


def test_deepseek_v2_lite_has_direct_queries_and_scales_scores() -> None:
    spec = spec_of("DeepseekV2ForCausalLM", **DEEPSEEK_V2_LITE)
    mscale = 0.1 * 0.707 * math.log(40) + 1
    rope = Rope(64, 10000.0, YarnScaling(40.0, 4096, 32.0, 1.0, True, 1.0))
    scale = pytest.approx(192**-0.5 * mscale**2)
    assert spec.decoder.layers[0].mixer == Mla(16, 128, 128, 512, None, rope, scale, Norm("rms", 1e-6))
    assert spec.decoder.layers[0].mlp == Mlp(10944)
    assert spec.decoder.layers[1].mlp == Moe(64, 6, 1408, renormalize=False, shared_size=2816)
    assert spec.max_model_len == 163840


def test_deepseek_v3_routes_by_sigmoids_in_groups() -> None:
    spec = spec_of("DeepseekV3ForCausalLM", **DEEPSEEK_V3)
    assert len(spec.decoder.layers) == 61
    assert [isinstance(layer.mlp, Moe) for layer in spec.decoder.layers] == [False] * 3 + [True] * 58
    assert spec.decoder.layers[3].mlp == Moe(
        256, 8, 2048, score="sigmoid", scale=2.5, num_groups=8, topk_groups=4, group_score="top2", shared_size=2048
    )
    assert spec.decoder.layers[3].mixer.q_rank == 1536


def test_kimi_k2_is_deepseek_v3_with_one_group() -> None:
    keys = DEEPSEEK_V3 | {"n_group": 1, "topk_group": 1, "n_routed_experts": 384, "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 0, "aux_loss_alpha": 0.001}  # fmt: skip
    moe = spec_of("DeepseekV3ForCausalLM", **keys).decoder.layers[1].mlp
    assert (moe.num_experts, moe.num_groups, moe.topk_groups) == (384, 1, 1)


def test_the_smallest_deepseek_vl2_has_ordinary_attention() -> None:
    keys = DEEPSEEK_V2_LITE | {"use_mla": False, "kv_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 0,
        "v_head_dim": 0, "rope_scaling": None, "hidden_size": 1280, "num_attention_heads": 10, "num_key_value_heads": 10,
        "rm_head": False}  # fmt: skip
    mixer = spec_of("DeepseekV2ForCausalLM", **keys).decoder.layers[0].mixer
    assert mixer == Attention(10, 10, 128, 128**-0.5, Rope(128, 10000.0))


def test_the_larger_deepseek_vl2_routes_as_deepseek_v3() -> None:
    keys = DEEPSEEK_V2_LITE | {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
        "n_routed_experts": 72, "routed_scaling_factor": 2.0, "rope_scaling": None}  # fmt: skip
    moe = spec_of("DeepseekV2ForCausalLM", **keys).decoder.layers[1].mlp
    assert (moe.score, moe.renormalize, moe.scale, moe.num_groups) == ("sigmoid", True, 2.0, 1)


def test_minicpm3_4b_leaves_the_size_of_values_and_the_tied_head_to_its_class() -> None:
    scaling = {"type": "longrope", "long_factor": [1.1] * 16, "short_factor": [1.05] * 16,
               "original_max_position_embeddings": 32768}  # fmt: skip
    spec = spec_of(
        "MiniCPM3ForCausalLM", vocab_size=73448, hidden_size=2560, intermediate_size=6400, num_hidden_layers=62,
        num_attention_heads=40, num_key_value_heads=40, qk_nope_head_dim=64, qk_rope_head_dim=32, q_lora_rank=768,
        kv_lora_rank=256, max_position_embeddings=32768, rms_norm_eps=1e-5, scale_emb=12, dim_model_base=256,
        scale_depth=1.4, hidden_act="silu", rope_scaling=scaling,
    )  # fmt: skip
    rope = Rope(32, 10000.0, LongRopeScaling((1.05,) * 16, 1.0, (1.1,) * 16, 1.0, 32768))
    assert spec.decoder.layers[0].mixer == Mla(40, 64, 64, 256, 768, rope, 96**-0.5, Norm("rms", 1e-6))
    assert spec.decoder.tied and spec.decoder.embed_scale == 12
    assert spec.decoder.layers[0].residual_scale == pytest.approx(1.4 / 62**0.5)
    assert spec.decoder.logit_scale == pytest.approx(0.1)


def test_phi_moe_has_a_magnitude_for_each_length() -> None:
    keys = {
        "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 6400, "num_hidden_layers": 2, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        "num_local_experts": 16, "num_experts_per_tok": 2, "router_jitter_noise": 0.01, "input_jitter_noise": 0.01,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 131072, "attention_bias": True, "lm_head_bias": True,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64, "short_mscale": 1.2431,
                         "long_mscale": 1.25, "original_max_position_embeddings": 4096},
    }  # fmt: skip
    long, short = spec_of("PhiMoEForCausalLM", **keys), spec_of("PhiMoEForCausalLM", 4096, **keys)
    for spec in (long, short):
        scaling = LongRopeScaling((1.0,) * 64, 1.2431, (2.0,) * 64, 1.25, 4096)
        assert attention_of(spec).positions.scaling == scaling
    assert (long.long_from, short.long_from) == (4096, None)
    assert long.decoder.layers[0].mlp == Moe(16, 2, 6400, score="sparse_mixer", jitter=0.01)


def test_dbrx_keeps_its_theta_with_its_attention() -> None:
    spec = spec_of(
        "DbrxForCausalLM", d_model=6144, n_heads=48, n_layers=2, max_seq_len=32768, vocab_size=100352,
        attn_config={"clip_qkv": 8, "kv_n_heads": 8, "model_type": "", "rope_theta": 500000},
        ffn_config={"ffn_hidden_size": 10752, "moe_jitter_eps": 0.01, "moe_loss_weight": 0.05, "moe_num_experts": 16,
                    "moe_top_k": 4, "model_type": ""},
    )  # fmt: skip
    assert attention_of(spec) == Attention(48, 8, 128, 128**-0.5, Rope(128, 500000.0), clip=8.0)
    assert spec.decoder.layers[0].mlp == Moe(16, 4, 10752)
    assert spec.max_model_len == 32768


def test_arctic_has_experts_beside_every_other_mlp() -> None:
    spec = spec_of(
        "ArcticForCausalLM", vocab_size=32000, hidden_size=7168, intermediate_size=4864, num_hidden_layers=4,
        num_attention_heads=56, num_key_value_heads=8, max_position_embeddings=4096, moe_layer_frequency=2,
        num_local_experts=128, num_experts_per_tok=2, parallel_attn_mlp_res=True, use_residual=True, rms_norm_eps=1e-5,
        rope_theta=10000, sliding_window=None, hidden_act="silu",
    )  # fmt: skip
    assert [layer.residual for layer in spec.decoder.layers] == ["sequential", "experts_beside"] * 2
    assert spec.decoder.layers[1].mlp == Moe(128, 2, 4864, shared_size=7168)


LLAMA_LIKE = {
    "vocab_size": 199, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}  # fmt: skip
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "n_routed_experts": 8}


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("DeepseekV2ForCausalLM", {"topk_method": "best"}, "topk_method of config.json is 'best'"),
        ("DeepseekV3ForCausalLM", {"n_group": 3}, "n_group of config.json is 3"),
        ("DeepseekV3ForCausalLM", {"n_group": 8, "topk_group": 4}, "n_group of config.json is 8"),
        ("DeepseekV3ForCausalLM", {"n_group": 4, "topk_group": 5}, "topk_group of config.json is 5"),
        ("DeepseekV3ForCausalLM", {"n_group": 4, "topk_group": 1, "num_experts_per_tok": 3}, "topk_group of config.json is 1"),
        ("MiniCPM3ForCausalLM", {"kv_lora_rank": None}, "config.json has no kv_lora_rank"),
        ("Qwen2MoeForCausalLM", {"mlp_only_layers": 3}, "mlp_only_layers of config.json is 3"),
        ("DbrxForCausalLM", {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "ffn_config": {
            "moe_normalize_expert_weights": 2}}, "moe_normalize_expert_weights of ffn_config of config.json is 2"),
        ("DbrxForCausalLM", {"d_model": 64, "n_heads": 4, "attn_config": {"kv_n_heads": 3}}, "kv_n_heads of attn_config"),
        ("MixtralForCausalLM", {"num_experts_per_tok": 9, "num_local_experts": 8}, "num_experts_per_tok of config.json is 9"),
        ("OlmoeForCausalLM", {"num_experts_per_tok": 5}, "num_experts_per_tok of config.json is 5"),
        ("DeepseekForCausalLM", {"num_experts_per_tok": 9}, "num_experts_per_tok of config.json is 9"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_named(architecture: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        spec_of(architecture, **LLAMA_LIKE | LATENT | config)
    assert message in str(caught.value)
