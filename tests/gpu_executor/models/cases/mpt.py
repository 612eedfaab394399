"""MPT."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import Case


def _mpt(name: str, architecture: str, n_heads: int, **attn_config: Any) -> Case:
    keys = {
        "model_type": "mpt", "vocab_size": 199, "d_model": 48, "n_layers": 3, "n_heads": n_heads, "expansion_ratio": 4,
        "max_seq_len": 256, "no_bias": True, "logit_scale": None, "norm_type": "low_precision_layernorm", "learned_pos_emb": True,
        "attn_config": {"alibi": True, "alibi_bias_max": 8, "prefix_lm": False, "qk_ln": False} | attn_config,
    }  # fmt: skip
    return Case(name, architecture, keys, class_name="MptForCausalLM")


CASES = [
    _mpt("mpt", "MPTForCausalLM", 4, clip_qkv=None, softmax_scale=None),
    _mpt("mpt-clamped-6-heads", "MptForCausalLM", 6, clip_qkv=0.8, softmax_scale=0.2),
]
