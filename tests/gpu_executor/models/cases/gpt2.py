"""GPT-2."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import Case

GPT2 = {
    "vocab_size": 199, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 256, "n_ctx": 256, "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

CASES = [
    Case("gpt2", "GPT2LMHeadModel", GPT2 | {"model_type": "gpt2"}),
    Case("gpt2-scaled-by-layer", "GPT2LMHeadModel", GPT2 | {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True,
         "n_inner": 72}),
]  # fmt: skip
