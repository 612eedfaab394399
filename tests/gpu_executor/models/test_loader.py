"""Loading refuses what does not fit, naming tensor, shape and expectation; and it can do without weights."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from forebay.errors import CheckpointError, NotOffered, UnknownArchitecture
from gpu_executor.models import loader
from gpu_executor.models.decoder import Decoder
from gpu_executor.models.loader import load_model, resolve_dtype, weight_table
from gpu_executor.models.names import Role
from tests.gpu_executor.models.checkpoints import all_cases, case_of, hub_tensors, tiny_model, write
from tests.gpu_executor.models.paged import run_in_chunks

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]


def tensors_of(name: str) -> Tensors:
    case = case_of(name)
    return hub_tensors(tiny_model(case), case)


def load(folder: Path, tensors: Tensors | None = None, name: str = "llama", **config: Any) -> Decoder:
    if tensors is not None:
        write(folder, case_of(name), tensors)
    keys = json.loads((folder / "config.json").read_text()) | config
    return load_model(folder, keys, dtype=torch.float32, device=CPU, progress=False)


O_PROJ = "model.layers.1.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {O_PROJ: torch.zeros(48, 47)},
         f"tensor {O_PROJ} has shape [48, 47] as layers.1.mixer.o.weight; config.json asks for [48, 48]"),
        ("llama", {O_PROJ: torch.zeros(48)}, "has shape [48] as layers.1.mixer.o.weight; config.json asks for [48, 48]"),
        ("gpt2", {"transformer.h.2.attn.c_attn.weight": torch.zeros(48, 143)},
         "tensor transformer.h.2.attn.c_attn.weight has shape [48, 143]: its 143 outputs are not those of 4 query and 4 kv heads"),
        ("llama", {O_PROJ: None}, "the checkpoint has no tensor for layers.1.mixer.o.weight"),
        ("llama", {"lm_head.weight": None}, "the checkpoint has no tensor for head.weight"),
        ("qwen2", {f"model.layers.{i}.self_attn.q_proj.bias": None for i in range(3)},
         "the checkpoint has no tensor for layers.0.mixer.q.bias and 2 more"),
        ("gpt2", {"transformer.ln_f.bias": None}, "the checkpoint has no tensor for norm.bias"),
        ("gpt2", {"transformer.wpe.weight": None}, r"no tensor like (?:transformer\.)?wpe\.weight"),
        ("stablelm-parallel-norms-of-heads", {"model.layers.1.self_attn.k_layernorm.norms.1.weight": None},
         "the checkpoint has no tensor for layers.1.mixer.k_norm.1.weight"),
        ("cohere-norms-of-heads", {"model.layers.1.self_attn.q_norm.weight": torch.zeros(5, 8)},
         "tensor model.layers.1.self_attn.q_norm.weight has shape [5, 8]: its 5 rows are not those of 6 heads"),
        ("gemma2", {"model.layers.2.post_feedforward_layernorm.weight": None},
         "the checkpoint has no tensor for layers.2.post_norm2.weight"),
        ("phi", {"lm_head.bias": None}, r"the checkpoint has no tensor like lm_head\.bias"),
        ("llama", {"model.layers.0.self_attn.q_norm.weight": torch.zeros(8)},
         "tensors that this architecture does not: model.layers.0.self_attn.q_norm.weight"),
        ("llama", {"model.layers.3.mlp.up_proj.weight": torch.zeros(80, 48)},
         "tensor model.layers.3.mlp.up_proj.weight would be layers.3.mlp.up.weight, which config.json's model does not have"),
        ("llama", {"norm.weight": torch.zeros(48)}, "tensors model.norm.weight and norm.weight are both norm.weight"),
        ("llama", {O_PROJ: torch.zeros(48, 48, dtype=torch.int8)}, f"tensor {O_PROJ} holds torch.int8, but config.json does not"),
        ("llama", {O_PROJ: torch.zeros(48, 48, dtype=torch.float8_e4m3fn)}, "holds torch.float8_e4m3fn, but config.json"),
    ],
    ids=["wrong-shape", "wrong-rank", "wrong-fused-shape", "missing", "missing-head", "missing-bias", "missing-final-bias",
         "missing-positions", "missing-norm-of-a-head", "wrong-norms-of-heads", "missing-norm-behind-a-branch", "missing-head-bias",
         "extra", "extra-layer", "twice", "int8", "fp8"],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    tmp_path: Path, name: str, change: dict[str, torch.Tensor | None], message: str
) -> None:
    tensors = {key: tensor for key, tensor in (tensors_of(name) | change).items() if tensor is not None}
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, tensors, name)
    assert message in str(caught.value)


def test_threads_end_with_the_error(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(CheckpointError):
        load(tmp_path, tensors_of("llama") | {O_PROJ: torch.zeros(1, 1)})
    assert threading.active_count() == before


def test_a_bias_that_is_there_is_used_though_no_key_announces_it(tmp_path: Path) -> None:
    """Its presence decides; the other parts of the fused projection then have a bias of zeros."""
    tensors = tensors_of("llama")
    bias = torch.randn(48)
    model = load(tmp_path, tensors | {"model.layers.0.self_attn.q_proj.bias": bias})
    fused = model.weights.get("layers.0.mixer.qkv.bias")
    assert fused is not None
    assert torch.equal(fused, torch.cat((bias, torch.zeros(32))))
    assert model.weights.get("layers.1.mixer.qkv.bias") is None


def test_fused_weights_are_the_parts_one_after_the_other(tmp_path: Path) -> None:
    tensors = tensors_of("llama")
    model = load(tmp_path, tensors)
    parts = [tensors[f"model.layers.2.self_attn.{part}_proj.weight"] for part in "qkv"]
    fused = model.weights.get("layers.2.mixer.qkv.weight")
    assert fused is not None and torch.equal(fused, torch.cat(parts))
    assert model.weights.slots["layers.2.mixer.k.weight"].data_ptr() == fused[48:].data_ptr()


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_a_quantization_that_is_not_served_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(NotOffered, match="is quantized with bitsandbytes, which is not served"):
        load(tmp_path, tensors_of("llama"), **{key: {"quant_method": "bitsandbytes"}})


def test_an_unknown_architecture_is_refused_before_weights_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UnknownArchitecture):
        load_model(tmp_path, {"architectures": ["NoForCausalLM"]}, dtype=torch.float32, device=CPU, progress=False)


# ---- dummy weights ----------------------------------------------------------------------------------------------------


def dummy(name: str, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Decoder:
    case = case_of(name)
    config = {"architectures": [case.architecture], **case.config}
    return load_model(folder, config, dtype=dtype, device=CPU, load_format="dummy", seed=seed, progress=False)


@pytest.mark.parametrize("name", [
    "llama", "llama-biases-tied-wide-heads", "mistral-window", "qwen2", "gpt2", "gemma2", "olmo",
    "stablelm-parallel-norms-of-heads", "opt-350m",
])  # fmt: skip
def test_dummy_weights_need_no_files_and_give_finite_logits(tmp_path: Path, name: str) -> None:
    model = dummy(name, tmp_path, dtype=torch.bfloat16)
    logits = run_in_chunks(model, [1, 2, 3, 4], 3)
    assert logits.isfinite().all() and logits.std() > 0
    for tensor_name, slot in model.weights.slots.items():
        if "norm" in tensor_name:
            assert (slot == (1 if tensor_name.endswith("weight") else 0)).all()
        else:
            assert 0.01 < slot.float().std() < 0.03


def test_dummy_weights_follow_from_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_DUMMY_BLOCK", 1000)  # so that tensors repeat it
    first, again, other = (dummy("llama", tmp_path, seed).weights.slots for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])
    flat = first["embed.weight"].flatten()
    assert torch.equal(flat[:1000], flat[1000:2000])


# ---- dtype ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "want"),
    [
        ("float16", {"torch_dtype": "bfloat16"}, torch.float16),
        ("auto", {"torch_dtype": "bfloat16"}, torch.bfloat16),
        ("auto", {"dtype": "float16", "torch_dtype": "bfloat16"}, torch.float16),
        ("auto", {"torch_dtype": "torch.float32"}, torch.float32),
        ("auto", {}, torch.float32),
    ],
)  # fmt: skip
def test_auto_is_the_dtype_of_the_checkpoint(name: str, config: dict[str, Any], want: torch.dtype) -> None:
    assert resolve_dtype(name, config, CPU) == want


def test_auto_looks_at_the_weights_where_the_config_does_not_say(tmp_path: Path) -> None:
    write(tmp_path, case_of("gpt2"), tensors_of("gpt2"), dtype=torch.bfloat16)
    assert resolve_dtype("auto", {}, CPU, folder=tmp_path) == torch.bfloat16


@pytest.mark.parametrize("name", ["float8", "int8"])
def test_another_dtype_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"dtype '{name}' is none of float32, bfloat16, float16"):
        resolve_dtype("auto", {"torch_dtype": name}, CPU)


# ---- the table for `forebay describe` -----------------------------------------------------------------------------------


def test_the_weight_table_tells_where_each_tensor_goes(tmp_path: Path) -> None:
    write(
        tmp_path,
        case_of("gpt2"),
        tensors_of("gpt2") | {"transformer.h.0.attn.masked_bias": torch.tensor(0.0)},
        num_shards=2,
    )
    resolved, rows = weight_table(tmp_path, json.loads((tmp_path / "config.json").read_text()))
    assert resolved.spec.architecture == "GPT2LMHeadModel"
    by_name = {row.canonical: row for row in rows if row.canonical}
    key = by_name["layers.1.mixer.k.weight"]
    assert (key.stored.name, key.stored.shape, key.stored.dtype) == (
        "transformer.h.1.attn.c_attn.weight",
        (48, 144),
        "F32",
    )
    assert (key.role, key.shape) == (Role.COLUMN, (48, 48))
    assert "split stacked" in key.rule
    assert by_name["embed.weight"].role is Role.VOCAB
    (skipped,) = (row for row in rows if not row.canonical)
    assert skipped.stored.name.endswith("masked_bias") and (skipped.role, skipped.shape) == (None, None)


def test_every_tensor_of_every_case_has_a_role_and_a_shape(tmp_path: Path) -> None:
    for case in all_cases():
        folder = tmp_path / case.name
        write(folder, case, hub_tensors(tiny_model(case), case))
        _, rows = weight_table(folder, json.loads((folder / "config.json").read_text()))
        assert {row.stored.name for row in rows} == set(load_file(folder / "model.safetensors"))
        assert all(row.role is not None and row.shape for row in rows)
