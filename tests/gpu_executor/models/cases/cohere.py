"""Command R and its successors."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import BASE, Case

_KEYS = {k: v for k, v in BASE.items() if k not in ("rms_norm_eps", "tie_word_embeddings")} | {"layer_norm_eps": 1e-4}


def _cohere(name: str, **config: Any) -> Case:
    return Case(name, "CohereForCausalLM", _KEYS | {"model_type": "cohere", "logit_scale": 0.3} | config)


def _cohere2(name: str, **config: Any) -> Case:
    keys = {"model_type": "cohere2", "logit_scale": 0.3, "sliding_window": 9, "num_hidden_layers": 5}
    return Case(name, "Cohere2ForCausalLM", _KEYS | keys | config)


CASES = [
    _cohere("cohere"),
    _cohere("cohere-norms-of-heads", use_qk_norm=True),
    _cohere("cohere-biases-untied", attention_bias=True, tie_word_embeddings=False),
    _cohere2("cohere2", sliding_window_pattern=4),
    _cohere2(
        "cohere2-layer-types", attention_bias=True, layer_types=["full_attention"] * 2 + ["sliding_attention"] * 3
    ),
]
