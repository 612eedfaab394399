"""Llama, with every rope scaling."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import BASE, Case


def _llama(name: str, **config: Any) -> Case:
    limits = {key: config.pop(key) for key in ("max_model_len", "least_prompt") if key in config}
    merged = BASE | {"model_type": "llama"} | config
    return Case(
        name, "LlamaForCausalLM", {k: v for k, v in merged.items() if k != "rope_theta" or v is not None}, **limits
    )


_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.4],
    "long_factor": [1.0, 1.5, 2.5, 4.0],
    "factor": 4.0,
}

CASES = [
    _llama("llama"),
    _llama("llama-biases-tied-wide-heads", attention_bias=True, mlp_bias=True, head_dim=20, tie_word_embeddings=True),
    _llama("llama-no-kv-groups", num_key_value_heads=None),
    _llama("llama-linear", rope_scaling={"type": "linear", "factor": 2.5}),
    _llama("llama-dynamic", rope_scaling={"type": "dynamic", "factor": 2.0}),
    _llama("llama-yarn", rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
    _llama("llama-yarn-given-factor", rope_scaling={"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3, "beta_fast": 20.0,
           "beta_slow": 2.0, "original_max_position_embeddings": 64}),
    _llama("llama-llama3", rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 32}),
    _llama("llama-rope-parameters", rope_theta=None, rope_parameters={"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0,
           "mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False, "original_max_position_embeddings": 64}),
    _llama("llama-longrope-short", rope_scaling=_LONGROPE | {"original_max_position_embeddings": 128}, max_model_len=128),
    _llama("llama-longrope-long", rope_scaling=_LONGROPE | {"original_max_position_embeddings": 32}, least_prompt=33),
]  # fmt: skip
