"""Gemma, Gemma 2 and Gemma 3."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import BASE, Case

_WIDE = {key: value for key, value in BASE.items() if key != "tie_word_embeddings"} | {"head_dim": 12}


def _gemma(name: str, **config: Any) -> Case:
    return Case(name, "GemmaForCausalLM", _WIDE | {"model_type": "gemma", "hidden_act": "gelu"} | config)


def _gemma2(name: str, **config: Any) -> Case:
    keys = {
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 9,
        "num_hidden_layers": 4,
    }
    return Case(name, "Gemma2ForCausalLM", _WIDE | keys | {"query_pre_attn_scalar": 20} | config)


def _gemma3(name: str, **config: Any) -> Case:
    keys = {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 9,
        "num_hidden_layers": 4,
    }
    return Case(name, "Gemma3ForCausalLM", _WIDE | keys | {"query_pre_attn_scalar": 20} | config)


CASES = [
    _gemma("gemma"),
    _gemma("gemma-biases-untied", attention_bias=True, tie_word_embeddings=False, num_key_value_heads=1),
    _gemma2("gemma2", attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    _gemma2("gemma2-without-caps", attn_logit_softcapping=None, final_logit_softcapping=None, hidden_act="gelu",
            layer_types=["full_attention", "full_attention", "sliding_attention", "full_attention"]),
    _gemma3("gemma3", sliding_window_pattern=3, rope_theta=1e6, rope_local_base_freq=1000.0,
            rope_scaling={"rope_type": "linear", "factor": 8.0}),
    _gemma3("gemma3-layer-types", attention_bias=True, final_logit_softcapping=3.0,
            layer_types=["full_attention", "sliding_attention"] * 2),
]  # fmt: skip
