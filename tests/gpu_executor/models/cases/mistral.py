"""Mistral, with and without its window."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import BASE, Case

CASES = [
    Case("mistral-window", "MistralForCausalLM", BASE | {"model_type": "mistral", "sliding_window": 9}),
    Case("mistral-window-16", "MistralForCausalLM", BASE | {"model_type": "mistral", "sliding_window": 16, "head_dim": None}),
    Case("mistral-full-wide-heads", "MistralForCausalLM", BASE | {"model_type": "mistral", "sliding_window": None, "head_dim": 16}),
]  # fmt: skip
