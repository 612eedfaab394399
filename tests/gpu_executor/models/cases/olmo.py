"""OLMo, OLMo 2 and OLMo 3."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import BASE, Case

_OLMO = {key: value for key, value in BASE.items() if key != "rms_norm_eps"} | {"model_type": "olmo"}
_OLMO2 = BASE | {"model_type": "olmo2", "rope_theta": 500000.0}
_OLMO3 = BASE | {"model_type": "olmo3", "rope_theta": 500000.0, "sliding_window": 9, "num_hidden_layers": 5}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.2}

CASES = [
    Case("olmo", "OlmoForCausalLM", _OLMO | {"clip_qkv": None, "tie_word_embeddings": True}),
    Case("olmo-clamped", "OlmoForCausalLM", _OLMO | {"clip_qkv": 0.8, "attention_bias": True}),
    Case("olmo2", "Olmo2ForCausalLM", _OLMO2),
    Case("olmo2-no-kv-groups", "Olmo2ForCausalLM", _OLMO2 | {"num_key_value_heads": None, "attention_bias": True}),
    Case("olmo3", "Olmo3ForCausalLM", _OLMO3),
    Case("olmo3-yarn", "Olmo3ForCausalLM", _OLMO3 | {"rope_scaling": _YARN}),
]
