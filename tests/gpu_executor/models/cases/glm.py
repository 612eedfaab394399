"""GLM-4 and GLM-4-0414."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import BASE, Case

_GLM = BASE | {"model_type": "glm", "head_dim": 16, "rms_norm_eps": 1.5625e-07, "eos_token_id": [2, 3]}

CASES = [
    Case("glm", "GlmForCausalLM", _GLM | {"attention_bias": True, "partial_rotary_factor": 0.5}),
    Case("glm-no-biases", "GlmForCausalLM", _GLM | {"attention_bias": False, "partial_rotary_factor": 0.25}),
    Case("glm4", "Glm4ForCausalLM", _GLM | {"model_type": "glm4", "partial_rotary_factor": 0.5}),
]
