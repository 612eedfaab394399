"""GPT-J."""

from __future__ import annotations

from tests.gpu_executor.models.cases.gpt2 import GPT2
from tests.gpu_executor.models.checkpoints import Case

_KEYS = {k: v for k, v in GPT2.items() if k != "n_ctx"} | {"model_type": "gptj", "tie_word_embeddings": False}

CASES = [
    Case("gptj", "GPTJForCausalLM", _KEYS | {"rotary_dim": 4}),
    Case(
        "gptj-whole-heads", "GPTJForCausalLM", _KEYS | {"rotary_dim": 12, "n_inner": 72, "activation_function": "gelu"}
    ),
]
