"""GPT-NeoX and Pythia."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import BASE, Case

_DROPPED = ("rms_norm_eps", "num_key_value_heads", "rope_theta")
_KEYS = {k: v for k, v in BASE.items() if k not in _DROPPED} | {
    "model_type": "gpt_neox", "hidden_act": "gelu", "layer_norm_eps": 1e-4, "num_attention_heads": 4,
}  # fmt: skip

CASES = [
    Case("gpt-neox", "GPTNeoXForCausalLM", _KEYS | {"rotary_pct": 0.5, "rotary_emb_base": 500, "use_parallel_residual": True}),
    Case("gpt-neox-serial", "GPTNeoXForCausalLM", _KEYS | {"rotary_pct": 1.0, "rotary_emb_base": 10000,
         "use_parallel_residual": False, "hidden_act": "gelu_fast", "attention_bias": False}),
    Case("gpt-neox-linear-tied", "GPTNeoXForCausalLM", _KEYS | {"rotary_pct": 0.34, "tie_word_embeddings": True,
         "rope_scaling": {"type": "linear", "factor": 2.0}}),
]  # fmt: skip
