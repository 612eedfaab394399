"""Tiny random checkpoints in the hub's layout, and what transformers makes of them. For every equivalence test."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import pkgutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.gpu_executor.models import cases

BASE = {
    "vocab_size": 199, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 80, "max_position_embeddings": 256, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """An architecture with some keys of its config.json. `max_model_len` and `least_prompt` where rope scaling needs them.

    Cases are in cases/, one module per family or group of families, each with a list CASES.
    """

    name: str
    architecture: str
    config: dict[str, Any]
    max_model_len: int | None = None
    least_prompt: int = 1
    class_name: str = ""  # transformers' class, where it is not called as the architecture is
    attention: str = "eager"  # transformers' implementation
    to_hub: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = (
        None  # where save_pretrained is not enough
    )

    def __str__(self) -> str:
        return self.name


def tiny_model(case: Case) -> transformers.PreTrainedModel:
    """A random float32 model of transformers in which no weight is trivially zero or one."""
    model_class = getattr(transformers, case.class_name or case.architecture)
    config = model_class.config_class.from_dict(case.config)
    torch.manual_seed(7)
    model = model_class._from_config(config, attn_implementation=case.attention).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() > 1 else 0.2
            parameter.add_(torch.randn_like(parameter) * spread * (parameter.shape[-1] / 48) ** -0.5)
        stored = model.state_dict()
        for name, buffer in model.named_buffers():
            if name in stored and name.endswith("bias"):  # of a router, as transformers keeps it
                buffer.add_(torch.randn_like(buffer) * 0.2)
    return model


def tiny_checkpoint(case: Case, folder: Path, *, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """Writes the model of a case in the hub's layout and gives it back."""
    model = tiny_model(case)
    write(folder, case, hub_tensors(model, case), dtype=dtype)
    return model


def hub_tensors(model: transformers.PreTrainedModel, case: Case) -> dict[str, torch.Tensor]:
    """The tensors as hub files have them: transformers converts names and experts back when it saves."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tensors = load_file(Path(folder) / "model.safetensors")
    return case.to_hub(tensors) if case.to_hub else tensors


def case_of(name: str) -> Case:
    """The case of this name."""
    return next(case for case in all_cases() if case.name == name)


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """The cases of all modules of cases/."""
    modules = [importlib.import_module(f"{cases.__name__}.{m.name}") for m in pkgutil.iter_modules(cases.__path__)]
    return tuple(case for module in modules for case in module.CASES)


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
