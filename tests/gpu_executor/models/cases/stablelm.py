"""StableLM."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import BASE, Case

_KEYS = {key: value for key, value in BASE.items() if key != "rms_norm_eps"} | {"hidden_size": 96}


def _stablelm(name: str, architecture: str = "StableLmForCausalLM", **config: Any) -> Case:
    return Case(name, architecture, _KEYS | {"model_type": "stablelm"} | config, class_name="StableLmForCausalLM")


CASES = [
    _stablelm("stablelm", layer_norm_eps=1e-5, partial_rotary_factor=0.25, use_qkv_bias=True),
    _stablelm("stablelm-parallel-norms-of-heads", use_parallel_residual=True, qk_layernorm=True, partial_rotary_factor=0.5),
    # The first releases' names, beside those that transformers knows.
    _stablelm("stablelm-epoch", "StableLMEpochForCausalLM", norm_eps=1e-4, layer_norm_eps=1e-4, rope_pct=0.5,
              partial_rotary_factor=0.5, num_key_value_heads=6),
]  # fmt: skip
