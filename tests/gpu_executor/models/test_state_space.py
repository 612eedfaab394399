"""State-space models: the layouts of their files, the precision of their states, and states of prefixes in an engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from forebay.errors import CheckpointError
from gpu_executor.config import ExecutorConfig
from gpu_executor.engine import Engine
from gpu_executor.mixers.state import FixedSlots
from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.loader import load_model
from gpu_executor.models.spec import Attention, Mamba, ModelSpec, Moe, Norm
from gpu_executor.request import Request, Sampling
from gpu_executor.startup import build_engine
from tests.gpu_executor.models.checkpoints import Case, case_of, hub_tensors, tiny_checkpoint, tiny_model, write
from tests.gpu_executor.models.paged import run_in_chunks
from tests.gpu_executor.models.test_decoder import assert_close, load, logits_of, prompt_of

MAMBA_130M = {
    "architectures": ["MambaForCausalLM"], "conv_kernel": 4, "d_inner": 1536, "d_model": 768, "expand": 2, "fused_add_norm": True,
    "hidden_act": "silu", "hidden_size": 768, "intermediate_size": 1536, "layer_norm_epsilon": 1e-5, "model_type": "mamba",
    "n_layer": 24, "num_hidden_layers": 24, "pad_vocab_size_multiple": 8, "residual_in_fp32": True, "rms_norm": True,
    "ssm_cfg": {}, "state_size": 16, "time_step_rank": 48, "use_bias": False, "use_conv_bias": True, "vocab_size": 50280,
}  # fmt: skip
FALCON_MAMBA_7B = {
    "architectures": ["FalconMambaForCausalLM"], "conv_kernel": 4, "expand": 16, "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 8192, "layer_norm_epsilon": 1e-5, "mixer_rms_eps": 1e-6, "model_type": "falcon_mamba",
    "num_hidden_layers": 64, "state_size": 16, "tie_word_embeddings": False, "time_step_rank": 256, "use_bias": False,
    "use_conv_bias": True, "vocab_size": 65024,
}  # fmt: skip
JAMBA_V01 = {
    "architectures": ["JambaForCausalLM"], "attn_layer_offset": 4, "attn_layer_period": 8, "expert_layer_offset": 1,
    "expert_layer_period": 2, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "mamba_conv_bias": True,
    "mamba_d_conv": 4, "mamba_d_state": 16, "mamba_dt_rank": 256, "mamba_expand": 2, "mamba_inner_layernorms": True,
    "mamba_proj_bias": False, "max_position_embeddings": 262144, "model_type": "jamba", "num_attention_heads": 32,
    "num_experts": 16, "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
    "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 65536,
}  # fmt: skip
MAMBA_2_8B_ORIGINAL = {
    "d_model": 2560, "n_layer": 64, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": True, "residual_in_fp32": True,
    "fused_add_norm": True, "pad_vocab_size_multiple": 8,
}  # fmt: skip


def resolve(config: dict[str, Any], **changes: Any) -> ModelSpec:
    return registry.resolve(ConfigReader(config | changes)).spec


def test_mamba_130m() -> None:
    spec = resolve(MAMBA_130M)
    (layer,) = set(spec.decoder.layers)
    assert layer.mixer == Mamba(1536, 16, 4, 48) and layer.mlp is None and len(spec.decoder.layers) == 24
    assert spec.decoder.tied and spec.vocab_size == 50280 and spec.max_model_len == 2048
    assert registry.resolve(ConfigReader(MAMBA_130M, max_model_len=100_000)).spec.max_model_len == 100_000


def test_falcon_mamba_7b() -> None:
    spec = resolve(FALCON_MAMBA_7B)
    (layer,) = set(spec.decoder.layers)
    assert layer.mixer == Mamba(8192, 16, 4, 256, Norm("rms", 1e-6, affine=False))
    assert not spec.decoder.tied and spec.decoder.norm == Norm("rms", 1e-5) and spec.max_model_len == 8192


def test_jamba_v01() -> None:
    spec = resolve(JAMBA_V01)
    layers = spec.decoder.layers
    assert [i for i, layer in enumerate(layers) if isinstance(layer.mixer, Attention)] == [4, 12, 20, 28]
    assert [i for i, layer in enumerate(layers) if isinstance(layer.mlp, Moe)] == list(range(1, 32, 2))
    assert layers[4].mixer == Attention(32, 8, 128, 128**-0.5)
    assert layers[1].mlp == Moe(16, 2, 14336, renormalize=False)
    assert layers[0].mixer == Mamba(8192, 16, 4, 256, Norm("rms", 1e-6)) and spec.max_model_len == 262144


def test_the_original_mamba_names_no_architecture() -> None:
    spec = resolve(MAMBA_2_8B_ORIGINAL)
    assert spec.decoder.layers[0].mixer == Mamba(5120, 16, 4, 160) and len(spec.decoder.layers) == 64
    assert spec.vocab_size == 50280 and spec.decoder.tied and spec.decoder.norm == Norm("rms", 1e-5)
    named = resolve(MAMBA_2_8B_ORIGINAL, architectures=["MambaForCausalLM"])  # as a fine-tune may
    assert named == dataclasses.replace(spec, architecture="MambaForCausalLM")


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (MAMBA_130M, {"hidden_act": "gelu"}, "hidden_act of config.json is 'gelu'; it must be silu"),
        (MAMBA_130M, {"time_step_rank": "half"}, "time_step_rank of config.json is 'half'"),
        (MAMBA_2_8B_ORIGINAL, {"ssm_cfg": {"layer": "Mamba2"}}, "layer of ssm_cfg of config.json is 'Mamba2'"),
        (MAMBA_2_8B_ORIGINAL, {"attn_layer_idx": [9]}, "attn_layer_idx of config.json"),
        (MAMBA_2_8B_ORIGINAL, {"d_intermediate": 99}, "d_intermediate of config.json is 99"),
        (JAMBA_V01, {"attn_layer_offset": 8}, "attn_layer_offset of config.json is 8; .* below the period, 8"),
        (JAMBA_V01, {"expert_layer_offset": -1}, "expert_layer_offset of config.json is -1"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve(config, **changes)


def write_original(folder: Path, *, layer_norm: bool = False) -> tuple[Any, dict[str, torch.Tensor]]:
    """A checkpoint as the paper's own code writes it, of 197 tokens padded to 200, and transformers' model of it."""
    base = case_of("mamba")
    case = Case(
        "original",
        base.architecture,
        base.config | {"vocab_size": 200, "state_size": 8, "expand": 3, "intermediate_size": 144},
    )
    reference = tiny_model(case)
    tensors = hub_tensors(reference, case)
    embedding = tensors.pop("backbone.embeddings.weight")
    tensors |= {"backbone.embedding.weight": embedding, "lm_head.weight": embedding.clone()}
    if layer_norm:
        tensors |= {
            n.replace("weight", "bias"): torch.randn(48)
            for n in list(tensors)
            if n.endswith(("norm.weight", "norm_f.weight"))
        }
    write(folder, case, tensors)
    ssm = {"d_state": 8, "expand": 3, "dt_rank": 3}
    config = MAMBA_2_8B_ORIGINAL | {
        "d_model": 48,
        "n_layer": 3,
        "vocab_size": 197,
        "ssm_cfg": ssm,
        "rms_norm": not layer_norm,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return reference, tensors


def test_the_original_layout_is_the_same_model(tmp_path: Path) -> None:
    reference, _ = write_original(tmp_path)
    prompt = prompt_of(case_of("mamba"), 1, 30)
    assert_close(run_in_chunks(load(tmp_path), prompt, 7), logits_of(reference, prompt))


def test_the_original_code_may_have_layer_norms(tmp_path: Path) -> None:
    _, tensors = write_original(tmp_path, layer_norm=True)
    model = load(tmp_path)
    assert torch.equal(model.weights.slots["layers.1.norm1.bias"], tensors["backbone.layers.1.norm.bias"])
    assert torch.isfinite(run_in_chunks(model, list(range(9)), 4)).all()
    del tensors["backbone.layers.1.norm.bias"]
    config = (tmp_path / "config.json").read_text()
    write(tmp_path, case_of("mamba"), tensors)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"no tensor for layers\.1\.norm1\.bias"):
        load(tmp_path)


@pytest.mark.parametrize("missing", ["A_log", "D", "conv1d.weight", "conv1d.bias", "dt_proj.bias", "x_proj.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, missing: str) -> None:
    case = case_of("mamba")
    tensors = hub_tensors(tiny_model(case), case)
    del tensors[f"backbone.layers.2.mixer.{missing}"]
    write(tmp_path, case, tensors)
    name = {"A_log": "a", "D": "d", "conv1d.weight": "conv.weight", "conv1d.bias": "conv.bias"}.get(missing, missing)
    with pytest.raises(CheckpointError, match=rf"no tensor for layers\.2\.mixer\.{name}"):
        load(tmp_path)


def test_falcon_mamba_has_no_weights_in_its_norms(tmp_path: Path) -> None:
    case = case_of("falcon-mamba")
    tensors = hub_tensors(tiny_model(case), case) | {"backbone.layers.0.mixer.dt_layernorm.weight": torch.ones(3)}
    write(tmp_path, case, tensors)
    with pytest.raises(CheckpointError, match="dt_layernorm"):
        load(tmp_path)


def test_bfloat16_is_as_near_as_that_of_transformers(tmp_path: Path) -> None:
    """Of Mamba itself; nothing bounds its steps, and with random weights float16 overflows there as here."""
    case = case_of("mamba")
    reference, prompt = tiny_checkpoint(case, tmp_path), prompt_of(case, 1, 40)
    exact = logits_of(reference, prompt)
    got = run_in_chunks(load(tmp_path, dtype=torch.bfloat16), prompt, 1000)
    theirs = (logits_of(reference.to(torch.bfloat16), prompt) - exact).square().mean().sqrt()
    assert (got - exact).square().mean().sqrt() < 1.3 * theirs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_rates_of_decay_are_not_rounded(tmp_path: Path, dtype: torch.dtype) -> None:
    reference = tiny_checkpoint(case_of("mamba"), tmp_path)
    model = load(tmp_path, dtype=dtype)
    theirs = reference.backbone.layers[1].mixer
    for name, exact in (("a", -torch.exp(theirs.A_log)), ("d", theirs.D), ("dt_proj.bias", theirs.dt_proj.bias)):
        assert torch.equal(model.weights.slots[f"layers.1.mixer.{name}"], exact.detach())
    assert model.weights.slots["layers.1.mixer.dt_proj.weight"].dtype == dtype


def test_random_weights_do_not_grow_without_end() -> None:
    config = case_of("mamba").config | {"architectures": ["MambaForCausalLM"]}
    model = load_model(
        Path(), config, dtype=torch.float32, device=torch.device("cpu"), load_format="dummy", progress=False
    )
    assert torch.isfinite(run_in_chunks(model, [1, 2, 3, 4] * 60, 240)).all()


def test_state_takes_the_memory_that_its_layout_says() -> None:
    layout = FixedSlots(inner_size=96, state_size=16, conv_size=4)
    for dtype in (torch.float32, torch.bfloat16):
        state = layout.allocate(1, 16, 5, dtype=dtype, device=torch.device("cpu"))
        assert sum(tensor.nbytes for tensor in state.tensors) == 5 * layout.bytes_per_sequence(dtype)
        assert layout.bytes_per_token(dtype) == 0


def engine_of(folder: Path, **options: Any) -> Engine:
    settings = {
        "dtype": "float32",
        "kv_cache_memory_bytes": 1 << 23,
        "max_num_seqs": 6,
        "num_threads": 1,
        "block_size": 4,
    }
    return build_engine(ExecutorConfig(model=str(folder), **(settings | options)), progress=False)[0]


def generate(engine: Engine, prompt: list[int], *, n: int = 1) -> tuple[Request, list[list[int]]]:
    request = Request(object(), prompt, Sampling(max_tokens=9, n=n))
    engine.add(request)
    while engine.has_work:
        engine.step()
    engine.scheduler.check()
    return request, [sequence.output_token_ids for sequence in request.sequences]


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_siblings_later_requests_and_next_turns_start_at_snapshots(tmp_path: Path, name: str) -> None:
    case = case_of(name)
    tiny_checkpoint(case, tmp_path)
    prompt = prompt_of(case, 1, 30)
    alone, caching = engine_of(tmp_path, enable_prefix_caching=False), engine_of(tmp_path)
    _, (want,) = generate(alone, prompt)
    assert generate(alone, prompt, n=3)[1] == [want] * 3
    first, got = generate(caching, prompt, n=3)
    assert got == [want] * 3 and first.num_cached_tokens == 0
    again, got = generate(caching, prompt)
    assert got == [want] and again.num_cached_tokens == 28
    turn = [*prompt, *want, *prompt_of(case, 2, 11)]
    later, got = generate(caching, turn)
    assert got == generate(alone, turn)[1] and later.num_cached_tokens == 36


def test_no_prefix_is_shared_where_memory_holds_no_snapshot(tmp_path: Path) -> None:
    tiny_checkpoint(case_of("mamba"), tmp_path)
    slot_bytes = 3 * FixedSlots(96, 16, 4).bytes_per_sequence(torch.float32)
    engine = engine_of(tmp_path, kv_cache_memory_bytes=6 * slot_bytes)
    assert engine.scheduler.snapshots.num_slots == 0
    results = [generate(engine, list(range(3, 33)), n=2) for _ in range(2)]
    assert results[0][1] == results[1][1] and results[1][0].num_cached_tokens == 0
