"""Phi-2 and Phi-3."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import BASE, Case

_PHI = {key: value for key, value in BASE.items() if key != "rms_norm_eps"} | {
    "model_type": "phi", "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "num_attention_heads": 4, "num_key_value_heads": None,
}  # fmt: skip
_LONGROPE = {"short_factor": [1.0, 1.1, 1.2, 1.4], "long_factor": [1.0, 1.5, 2.5, 4.0]}


def _phi3(name: str, *, trained: int, **config: Any) -> Case:
    limits = {key: config.pop(key) for key in ("max_model_len", "least_prompt") if key in config}
    keys = {"model_type": "phi3", "original_max_position_embeddings": trained, "sliding_window": None}
    return Case(name, "Phi3ForCausalLM", BASE | keys | config, **limits)


CASES = [
    Case("phi", "PhiForCausalLM", _PHI | {"partial_rotary_factor": 0.5}),
    Case("phi-norms-groups", "PhiForCausalLM", _PHI | {"partial_rotary_factor": 0.34, "qk_layernorm": True,
         "num_key_value_heads": 2}),
    _phi3("phi3-window", trained=256, sliding_window=9, num_key_value_heads=6, rope_scaling=None),
    _phi3("phi3-su", trained=32, rope_scaling=_LONGROPE | {"type": "su", "original_max_position_embeddings": 32}),
    _phi3("phi3-longrope-short", trained=128, max_model_len=128, rope_scaling=_LONGROPE | {"type": "longrope"}),
    _phi3("phi3-yarn-means-longrope", trained=32, rope_scaling=_LONGROPE | {"type": "yarn",
          "original_max_position_embeddings": 32}),
    _phi3("phi4-mini", trained=32, least_prompt=33, hidden_size=64, num_attention_heads=4, partial_rotary_factor=0.75,
          tie_word_embeddings=True, rope_scaling={"type": "longrope", "short_factor": [1.0] * 6,
          "long_factor": [1.0, 1.1, 1.3, 1.7, 2.5, 4.0]}),
]  # fmt: skip
