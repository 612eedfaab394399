"""Qwen2 and Qwen3, whose upper layers may have a window."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import BASE, Case

CASES = [
    Case("qwen2", "Qwen2ForCausalLM", BASE | {"model_type": "qwen2", "tie_word_embeddings": True, "sliding_window": 8,
         "use_sliding_window": False}),
    Case("qwen2-layer-types", "Qwen2ForCausalLM", BASE | {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    Case("qwen2-windows-above", "Qwen2ForCausalLM", BASE | {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True,
         "max_window_layers": 1}),
    Case("qwen3", "Qwen3ForCausalLM", BASE | {"model_type": "qwen3", "head_dim": 12, "sliding_window": None}),
    Case("qwen3-windows-above", "Qwen3ForCausalLM", BASE | {"model_type": "qwen3", "head_dim": 8, "attention_bias": True,
         "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
]  # fmt: skip
