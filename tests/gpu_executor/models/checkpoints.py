"""Tiny random checkpoints in the hub's layout, and what transformers makes of them. For every equivalence test."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

BASE = {
    "vocab_size": 199, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 80, "max_position_embeddings": 256, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {
    "vocab_size": 199, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 256, "n_ctx": 256, "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """An architecture with some keys of its config.json. `max_model_len` and `least_prompt` where rope scaling needs them."""

    name: str
    architecture: str
    config: dict[str, Any]
    max_model_len: int | None = None
    least_prompt: int = 1

    def __str__(self) -> str:
        return self.name


def _llama(name: str, **config: Any) -> Case:
    limits = {key: config.pop(key) for key in ("max_model_len", "least_prompt") if key in config}
    merged = BASE | {"model_type": "llama"} | config
    return Case(
        name, "LlamaForCausalLM", {k: v for k, v in merged.items() if k != "rope_theta" or v is not None}, **limits
    )


_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.4],
    "long_factor": [1.0, 1.5, 2.5, 4.0],
    "factor": 4.0,
}

CASES = [
    _llama("llama"),
    _llama("llama-biases-tied-wide-heads", attention_bias=True, mlp_bias=True, head_dim=20, tie_word_embeddings=True),
    _llama("llama-no-kv-groups", num_key_value_heads=None),
    _llama("llama-linear", rope_scaling={"type": "linear", "factor": 2.5}),
    _llama("llama-dynamic", rope_scaling={"type": "dynamic", "factor": 2.0}),
    _llama("llama-yarn", rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
    _llama("llama-yarn-given-factor", rope_scaling={"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3, "beta_fast": 20.0,
           "beta_slow": 2.0, "original_max_position_embeddings": 64}),
    _llama("llama-llama3", rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 32}),
    _llama("llama-rope-parameters", rope_theta=None, rope_parameters={"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0,
           "mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False, "original_max_position_embeddings": 64}),
    _llama("llama-longrope-short", rope_scaling=_LONGROPE | {"original_max_position_embeddings": 128}, max_model_len=128),
    _llama("llama-longrope-long", rope_scaling=_LONGROPE | {"original_max_position_embeddings": 32}, least_prompt=33),
    Case("mistral-window", "MistralForCausalLM", BASE | {"model_type": "mistral", "sliding_window": 9}),
    Case("mistral-window-16", "MistralForCausalLM", BASE | {"model_type": "mistral", "sliding_window": 16, "head_dim": None}),
    Case("mistral-full-wide-heads", "MistralForCausalLM", BASE | {"model_type": "mistral", "sliding_window": None, "head_dim": 16}),
    Case("qwen2", "Qwen2ForCausalLM", BASE | {"model_type": "qwen2", "tie_word_embeddings": True, "sliding_window": 8,
         "use_sliding_window": False}),
    Case("qwen2-layer-types", "Qwen2ForCausalLM", BASE | {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    Case("qwen2-windows-above", "Qwen2ForCausalLM", BASE | {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True,
         "max_window_layers": 1}),
    Case("gpt2", "GPT2LMHeadModel", GPT2 | {"model_type": "gpt2"}),
    Case("gpt2-scaled-by-layer", "GPT2LMHeadModel", GPT2 | {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True,
         "n_inner": 72}),
]  # fmt: skip


def tiny_model(case: Case) -> transformers.PreTrainedModel:
    """A random float32 model of transformers in which no weight is trivially zero or one."""
    model_class = getattr(transformers, case.architecture)
    config = model_class.config_class.from_dict(case.config)
    torch.manual_seed(7)
    model = model_class._from_config(config, attn_implementation="eager").eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() > 1 else 0.2
            parameter.add_(torch.randn_like(parameter) * spread * (parameter.shape[-1] / 48) ** -0.5)
    return model


def tiny_checkpoint(case: Case, folder: Path, *, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """Writes the model of a case in the hub's layout and gives it back."""
    model = tiny_model(case)
    write(folder, case, hub_tensors(model), dtype=dtype)
    return model


def hub_tensors(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors under the names that hub files use; a tied head is left out."""
    tied = model.config.tie_word_embeddings
    return {k: v.detach().clone() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}


def case_of(name: str) -> Case:
    """The case of this name."""
    return next(case for case in CASES if case.name == name)


def write(
    folder: Path,
    case: Case,
    tensors: dict[str, torch.Tensor],
    *,
    num_shards: int = 1,
    dtype: torch.dtype = torch.float32,
) -> None:
    """config.json with classic keys, and the tensors in one file or in several with an index; float32 ones in `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": [case.architecture], "torch_dtype": str(dtype).removeprefix("torch."), **case.config}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: (t.to(dtype) if t.dtype == torch.float32 else t).contiguous() for name, t in tensors.items()}
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        mine = names[shard::num_shards]
        save_file({name: tensors[name] for name in mine}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
