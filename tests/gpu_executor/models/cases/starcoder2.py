"""StarCoder2."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import BASE, Case

_KEYS = {key: value for key, value in BASE.items() if key not in ("rms_norm_eps", "tie_word_embeddings")} | {
    "model_type": "starcoder2", "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-4,
}  # fmt: skip

CASES = [
    Case("starcoder2", "Starcoder2ForCausalLM", _KEYS | {"sliding_window": 9, "use_bias": True}),
    Case("starcoder2-no-biases", "Starcoder2ForCausalLM", _KEYS | {"sliding_window": None, "use_bias": False,
         "tie_word_embeddings": False}),
]  # fmt: skip
