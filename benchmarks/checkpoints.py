"""Owns the checkpoints that benchmarks run on: config.json of known shapes, with random weights where files are wanted."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

# Llama-like keys of real checkpoints. "tiny" is for trying a benchmark out.
_QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "tie_word_embeddings": True, "use_sliding_window": False, "max_position_embeddings": 32768,
    "bos_token_id": 151643, "eos_token_id": 151645, "torch_dtype": "bfloat16",
}  # fmt: skip
SHAPES = {
    "qwen2-0.5b": _QWEN2 | {
        "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "intermediate_size": 4864, "vocab_size": 151936,
    },
    "tiny": _QWEN2 | {
        "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 256, "vocab_size": 1024, "bos_token_id": 1, "eos_token_id": 2,
    },
}  # fmt: skip


def write_config(shape: str, folder: Path | None = None) -> Path:
    """A folder with the shape's config.json, for `--load-format dummy`."""
    folder = folder or Path(tempfile.mkdtemp(prefix=f"forebay-{shape}-"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[shape], indent=1))
    return folder


def write_checkpoint(shape: str, folder: Path) -> Path:
    """A whole random checkpoint of a shape in bfloat16, so that several servers load the same; kept if it is there."""
    if (folder / "model.safetensors").is_file():
        return folder
    import torch
    from safetensors.torch import save_file

    write_config(shape, folder)
    config = SHAPES[shape]
    hidden, mlp = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, size in (("q", hidden), ("k", kv), ("v", kv)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (size, hidden)
            shapes[f"{prefix}self_attn.{name}_proj.bias"] = (size,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{prefix}mlp.gate_proj.weight"] = shapes[f"{prefix}mlp.up_proj.weight"] = (mlp, hidden)
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, mlp)
        shapes[f"{prefix}input_layernorm.weight"] = shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(size, dtype=torch.bfloat16)
        if "norm" in name
        else (torch.randn(size, generator=generator) * 0.02).bfloat16()
        for name, size in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
