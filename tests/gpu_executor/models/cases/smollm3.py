"""SmolLM3."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import BASE, Case

_KEYS = {key: value for key, value in BASE.items() if key != "tie_word_embeddings"} | {"model_type": "smollm3"}

CASES = [
    Case("smollm3", "SmolLM3ForCausalLM", _KEYS | {"no_rope_layer_interval": 3, "use_sliding_window": False}),
    Case("smollm3-windows", "SmolLM3ForCausalLM", _KEYS | {"no_rope_layers": [0, 1, 1], "use_sliding_window": True,
         "sliding_window": 9, "attention_bias": True, "tie_word_embeddings": False}),
]  # fmt: skip
