"""BLOOM."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import Case

_KEYS = {
    "model_type": "bloom", "vocab_size": 199, "hidden_size": 48, "n_layer": 3, "layer_norm_epsilon": 1e-4, "seq_length": 256,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
}  # fmt: skip

CASES = [
    Case("bloom", "BloomForCausalLM", _KEYS | {"n_head": 4}),
    # A head count that is no power of two, and the key names of other files.
    Case("bloom-6-heads-normed", "BloomForCausalLM", {k: v for k, v in _KEYS.items() if k != "hidden_size"} | {"n_embed": 48,
         "num_attention_heads": 6, "apply_residual_connection_post_layernorm": True}),
]  # fmt: skip
