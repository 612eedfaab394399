"""OPT, its 350M, and Galactica."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import Case


def _opt(name: str, **config: Any) -> Case:
    keys = {
        "model_type": "opt", "vocab_size": 199, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 80,
        "max_position_embeddings": 256, "word_embed_proj_dim": 48, "do_layer_norm_before": True, "activation_function": "relu",
        "_remove_final_layer_norm": False, "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1,
    }  # fmt: skip
    return Case(name, "OPTForCausalLM", keys | config)


CASES = [
    _opt("opt"),
    _opt("opt-350m", do_layer_norm_before=False, word_embed_proj_dim=32),
    _opt("opt-galactica", enable_bias=False, layer_norm_elementwise_affine=False, activation_function="gelu"),
    _opt("opt-untied-wide", tie_word_embeddings=False, word_embed_proj_dim=64),
]
