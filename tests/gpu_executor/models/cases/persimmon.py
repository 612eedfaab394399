"""Persimmon."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import BASE, Case

_KEYS = {k: v for k, v in BASE.items() if k not in ("rms_norm_eps", "num_key_value_heads")} | {
    "model_type": "persimmon", "hidden_act": "relu2", "layer_norm_eps": 1e-4, "num_attention_heads": 4, "rope_theta": 25000.0,
}  # fmt: skip

CASES = [
    Case("persimmon", "PersimmonForCausalLM", _KEYS | {"qk_layernorm": True, "partial_rotary_factor": 0.5}),
    Case("persimmon-no-norms-of-heads", "PersimmonForCausalLM", _KEYS | {"qk_layernorm": False,
         "partial_rotary_factor": 0.34, "tie_word_embeddings": True}),
]  # fmt: skip
