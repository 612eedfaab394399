"""Mixtures of experts with ordinary attention."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import BASE, Case

_MIXTRAL = BASE | {"model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None}
_QWEN2_MOE = BASE | {
    "model_type": "qwen2_moe", "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 56, "norm_topk_prob": False, "use_sliding_window": False, "sliding_window": 8,
    "max_window_layers": 2, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
_OLMOE = BASE | {
    "model_type": "olmoe", "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": False, "clip_qkv": None,
}  # fmt: skip
_GRANITE_MOE = BASE | {
    "model_type": "granitemoe", "num_local_experts": 6, "num_experts_per_tok": 3, "attention_multiplier": 0.4,
    "embedding_multiplier": 6.0, "residual_multiplier": 0.5, "logits_scaling": 3.0, "attention_bias": False,
}  # fmt: skip
_PHIMOE = BASE | {
    "model_type": "phimoe", "num_local_experts": 5, "num_experts_per_tok": 2, "router_jitter_noise": 0.2,
    "input_jitter_noise": 0.01, "attention_bias": True, "lm_head_bias": True, "sliding_window": None, "rope_scaling": None,
}  # fmt: skip
# transformers never changes to the long factors, only to the long mscale: equal ones show the latter.
_PHIMOE_LONGROPE = {
    "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.4], "long_factor": [1.0, 1.1, 1.2, 1.4], "short_mscale": 1.1,
    "long_mscale": 1.3,
}  # fmt: skip
_DBRX = {
    "model_type": "dbrx", "vocab_size": 199, "d_model": 48, "n_heads": 6, "n_layers": 3, "max_seq_len": 256,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_DBRX_ATTN = {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0}
_DBRX_FFN = {"ffn_hidden_size": 40, "moe_num_experts": 5, "moe_top_k": 3, "moe_jitter_eps": 0.01}

CASES = [
    Case("mixtral", "MixtralForCausalLM", _MIXTRAL),
    Case("mixtral-window", "MixtralForCausalLM", _MIXTRAL | {"sliding_window": 9, "num_experts_per_tok": 3,
         "tie_word_embeddings": True}),
    Case("qwen2-moe", "Qwen2MoeForCausalLM", _QWEN2_MOE),
    Case("qwen2-moe-some-dense", "Qwen2MoeForCausalLM", _QWEN2_MOE | {"num_hidden_layers": 4, "decoder_sparse_step": 2,
         "mlp_only_layers": [3], "norm_topk_prob": True, "moe_intermediate_size": 36}),
    Case("qwen2-moe-windows", "Qwen2MoeForCausalLM", _QWEN2_MOE | {"use_sliding_window": True, "qkv_bias": False,
         "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    Case("olmoe", "OlmoeForCausalLM", _OLMOE),
    Case("olmoe-clipped", "OlmoeForCausalLM", _OLMOE | {"clip_qkv": 0.6, "norm_topk_prob": True, "attention_bias": True,
         "num_key_value_heads": 6}),
    Case("granite-moe", "GraniteMoeForCausalLM", _GRANITE_MOE),
    Case("granite-moe-tied-biases", "GraniteMoeForCausalLM", _GRANITE_MOE | {"tie_word_embeddings": True,
         "attention_bias": True, "num_key_value_heads": None}),
    Case("phimoe", "PhiMoEForCausalLM", _PHIMOE, class_name="PhimoeForCausalLM"),
    Case("phimoe-without-biases", "PhimoeForCausalLM", _PHIMOE | {"attention_bias": False, "lm_head_bias": False,
         "sliding_window": 11, "router_jitter_noise": 0.01}),
    Case("phimoe-longrope-short", "PhiMoEForCausalLM", _PHIMOE | {"original_max_position_embeddings": 128,
         "rope_scaling": _PHIMOE_LONGROPE | {"original_max_position_embeddings": 128}}, max_model_len=128,
         class_name="PhimoeForCausalLM"),
    Case("phimoe-longrope-long", "PhiMoEForCausalLM", _PHIMOE | {"original_max_position_embeddings": 32,
         "rope_scaling": _PHIMOE_LONGROPE | {"original_max_position_embeddings": 32}}, least_prompt=33,
         class_name="PhimoeForCausalLM"),
    Case("dbrx", "DbrxForCausalLM", _DBRX | {"attn_config": _DBRX_ATTN, "ffn_config": _DBRX_FFN}),
    Case("dbrx-as-routed", "DbrxForCausalLM", _DBRX | {"attn_config": _DBRX_ATTN | {"clip_qkv": 0.5},
         "ffn_config": _DBRX_FFN | {"moe_normalize_expert_weights": None, "ffn_act_fn": {"name": "gelu"}}}),
]  # fmt: skip
