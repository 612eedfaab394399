"""StarCoder and SantaCoder."""

from __future__ import annotations

from tests.gpu_executor.models.cases.gpt2 import GPT2
from tests.gpu_executor.models.checkpoints import Case

_KEYS = {k: v for k, v in GPT2.items() if k != "n_ctx"} | {"model_type": "gpt_bigcode"}

CASES = [
    Case("gpt-bigcode", "GPTBigCodeForCausalLM", _KEYS | {"multi_query": True, "activation_function": "gelu"}),
    Case("gpt-bigcode-no-kv-groups", "GPTBigCodeForCausalLM", _KEYS | {"multi_query": False, "n_inner": 72,
         "activation_function": "gelu_pytorch_tanh", "scale_attn_weights": False}),
]  # fmt: skip
