"""Granite."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import BASE, Case

_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.5,
}

CASES = [
    Case("granite", "GraniteForCausalLM", BASE | {"model_type": "granite", "tie_word_embeddings": True} | _MULTIPLIERS),
    Case(
        "granite-biases",
        "GraniteForCausalLM",
        BASE | {"model_type": "granite", "attention_bias": True, "mlp_bias": True},
    ),
]
