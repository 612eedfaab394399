"""Latent attention: DeepSeek-V2, DeepSeek-V3 and MiniCPM3."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import BASE, Case

_MLA = {
    "num_key_value_heads": 6, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10,
}  # fmt: skip
_EXPERTS = {
    "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2, "moe_intermediate_size": 24,
    "first_k_dense_replace": 1, "moe_layer_freq": 1,
}  # fmt: skip
_YARN = {
    "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707,
    "mscale_all_dim": 0.707,
}  # fmt: skip
_V2 = BASE | _MLA | _EXPERTS | {"model_type": "deepseek_v2", "scoring_func": "softmax", "norm_topk_prob": False,
    "rope_scaling": None}  # fmt: skip
_V2_LITE = _V2 | {
    "q_lora_rank": None,
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
}
_V2_FULL = _V2 | {"q_lora_rank": 28, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
    "routed_scaling_factor": 16.0}  # fmt: skip
_V3 = BASE | _MLA | _EXPERTS | {
    "model_type": "deepseek_v3", "q_lora_rank": 28, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5,
    "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "num_nextn_predict_layers": 1,
    "rope_scaling": None,
}  # fmt: skip
_MINICPM3 = BASE | _MLA | {
    "model_type": "minicpm3", "q_lora_rank": 28, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16,
    "tie_word_embeddings": True,
}  # fmt: skip
_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.4],
    "long_factor": [1.0, 1.5, 2.5, 4.0],
    "factor": 4.0,
}

CASES = [
    Case("deepseek-v2-lite", "DeepseekV2ForCausalLM", _V2_LITE),
    Case("deepseek-v2-lite-yarn", "DeepseekV2ForCausalLM", _V2_LITE | {"rope_scaling": _YARN, "rope_theta": 5000.0}),
    Case("deepseek-v2", "DeepseekV2ForCausalLM", _V2_FULL | {"moe_intermediate_size": 20}),
    Case("deepseek-v2-yarn-mscales-differ", "DeepseekV2ForCausalLM", _V2_FULL | {"attention_bias": True,
         "rope_scaling": _YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}),
    Case("deepseek-v2-all-dense", "DeepseekV2ForCausalLM", _V2_LITE | {"first_k_dense_replace": 3, "rms_norm_eps": 0.1}),
    Case("deepseek-v3", "DeepseekV3ForCausalLM", _V3),
    Case("deepseek-v3-yarn-biases", "DeepseekV3ForCausalLM", _V3 | {"rope_scaling": _YARN | {"mscale": 1.0,
         "mscale_all_dim": 1.0}, "attention_bias": True, "first_k_dense_replace": 2}),
    Case("deepseek-v3-halves", "DeepseekV3ForCausalLM", _V3 | {"rope_interleave": False, "norm_topk_prob": False}),
    Case("moonlight", "DeepseekV3ForCausalLM", _V3 | {"q_lora_rank": None, "n_group": 1, "topk_group": 1,
         "num_nextn_predict_layers": 0, "routed_scaling_factor": 2.446}),
    Case("minicpm3", "MiniCPM3ForCausalLM", _MINICPM3),
    Case("minicpm3-direct-queries-biases", "MiniCPM3ForCausalLM", _MINICPM3 | {"q_lora_rank": None, "v_head_dim": None,
         "attention_bias": True, "mlp_bias": True, "scale_depth": None, "dim_model_base": None,
         "tie_word_embeddings": False}),
    Case("minicpm3-longrope-short", "MiniCPM3ForCausalLM", _MINICPM3 | {"rope_scaling": _LONGROPE | {
         "original_max_position_embeddings": 128}}, max_model_len=128),
    Case("minicpm3-longrope-long", "MiniCPM3ForCausalLM", _MINICPM3 | {"rope_scaling": _LONGROPE | {
         "original_max_position_embeddings": 32}}, least_prompt=33),
]  # fmt: skip
