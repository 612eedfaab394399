"""Nemotron-4."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import BASE, Case

_KEYS = {key: value for key, value in BASE.items() if key != "rms_norm_eps"} | {
    "model_type": "nemotron", "hidden_act": "relu2", "norm_eps": 1e-4,
}  # fmt: skip

CASES = [
    Case("nemotron", "NemotronForCausalLM", _KEYS | {"partial_rotary_factor": 0.5, "head_dim": 12}),
    Case("nemotron-biases", "NemotronForCausalLM", _KEYS | {"partial_rotary_factor": 0.25, "attention_bias": True,
         "mlp_bias": True}),
]  # fmt: skip
