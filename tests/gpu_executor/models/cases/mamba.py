"""Mamba, Falcon Mamba and Jamba, whose layers keep a state of fixed size."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import Case

_TOKENS = {"vocab_size": 199, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_MAMBA = _TOKENS | {
    "hidden_size": 48, "num_hidden_layers": 3, "state_size": 16, "conv_kernel": 4, "expand": 2, "intermediate_size": 96,
    "time_step_rank": 3, "use_bias": False, "use_conv_bias": True, "hidden_act": "silu", "layer_norm_epsilon": 1e-5,
    "residual_in_fp32": True, "tie_word_embeddings": True,
}  # fmt: skip
_JAMBA = _TOKENS | {
    "model_type": "jamba", "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 80, "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 4,
    "num_experts_per_tok": 2, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 5,
    "mamba_conv_bias": True, "mamba_proj_bias": False, "sliding_window": None, "use_mamba_kernels": False,
}  # fmt: skip


def _mamba(name: str, **config: Any) -> Case:
    merged = _MAMBA | {"model_type": "mamba"} | config
    return Case(name, "MambaForCausalLM", {k: v for k, v in merged.items() if v is not None})


def _falcon(name: str, **config: Any) -> Case:
    merged = _MAMBA | {"model_type": "falcon_mamba", "mixer_rms_eps": 1e-6, "tie_word_embeddings": False} | config
    return Case(name, "FalconMambaForCausalLM", merged)


CASES = [
    _mamba("mamba"),
    _mamba("mamba-biases-untied", use_bias=True, tie_word_embeddings=False, state_size=8, expand=3, intermediate_size=144),
    _mamba("mamba-no-conv-bias-auto-rank", use_conv_bias=False, time_step_rank="auto", intermediate_size=None, expand=None),
    _mamba("mamba-wide-conv", conv_kernel=9, state_size=5, layer_norm_epsilon=0.5),  # wider than some prompts
    _falcon("falcon-mamba"),
    _falcon("falcon-mamba-wrong-expand", expand=16, mixer_rms_eps=0.3, use_bias=True, tie_word_embeddings=True),
    Case("jamba", "JambaForCausalLM", _JAMBA),
    Case("jamba-one-expert-tied", "JambaForCausalLM", _JAMBA | {"num_experts": 1, "num_experts_per_tok": 1,
         "tie_word_embeddings": True, "mamba_proj_bias": True, "mamba_conv_bias": False, "mamba_dt_rank": "auto"}),
    Case("jamba-attention-first", "JambaForCausalLM", _JAMBA | {"attn_layer_period": 2, "attn_layer_offset": 0, "num_experts": 3,
         "expert_layer_period": 1, "expert_layer_offset": 0, "num_key_value_heads": 6, "rms_norm_eps": 0.1}),
]  # fmt: skip
