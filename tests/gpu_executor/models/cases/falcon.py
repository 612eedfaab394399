"""Falcon's sizes.

The slopes of 8 or 6 heads are powers of two, and so are exact in transformers' bfloat16 below 256 positions. Its eager
attention adds the linear biases twice (with its mask, and once more), so the default one is what counts.
"""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import Case


def _falcon(name: str, architecture: str = "FalconForCausalLM", **config: Any) -> Case:
    keys = {
        "model_type": "falcon", "vocab_size": 199, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 8,
        "layer_norm_epsilon": 1e-4, "alibi": False, "bias": False, "multi_query": True, "parallel_attn": True,
        "new_decoder_architecture": False, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return Case(name, architecture, keys | config, class_name="FalconForCausalLM", attention="sdpa")


CASES = [
    _falcon("falcon-7b", num_kv_heads=8),
    _falcon("falcon-7b-first-names", "RWForCausalLM", n_head=8, n_layer=3, bias=True, rope_theta=500.0),
    _falcon("falcon-40b", new_decoder_architecture=True, num_kv_heads=2, multi_query=True),
    _falcon("falcon-11b", new_decoder_architecture=True, num_kv_heads=4, num_ln_in_parallel_attn=1, rope_theta=500042.0,
            ffn_hidden_size=104, tie_word_embeddings=False),
    _falcon("falcon-rw", alibi=True, bias=True, multi_query=False, parallel_attn=False),
    _falcon("falcon-rw-6-heads", alibi=True, multi_query=False, parallel_attn=False, num_attention_heads=6),
    _falcon("falcon-serial-rope", multi_query=False, parallel_attn=False),
    _falcon("falcon-alibi-parallel", alibi=True, activation="relu"),
]  # fmt: skip
