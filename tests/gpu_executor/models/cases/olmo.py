"""OLMo and OLMo 2."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import BASE, Case

_OLMO = {key: value for key, value in BASE.items() if key != "rms_norm_eps"} | {"model_type": "olmo"}
_OLMO2 = BASE | {"model_type": "olmo2", "rope_theta": 500000.0}

CASES = [
    Case("olmo", "OlmoForCausalLM", _OLMO | {"clip_qkv": None, "tie_word_embeddings": True}),
    Case("olmo-clamped", "OlmoForCausalLM", _OLMO | {"clip_qkv": 0.8, "attention_bias": True}),
    Case("olmo2", "Olmo2ForCausalLM", _OLMO2),
    Case("olmo2-no-kv-groups", "Olmo2ForCausalLM", _OLMO2 | {"num_key_value_heads": None, "attention_bias": True}),
]
