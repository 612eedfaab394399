"""A quantized checkpoint gives the logits of the plain one that it stands for: made plain while loading, or kept as it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from forebay.errors import CheckpointError
from gpu_executor.layers.mlp import GatedMlp
from gpu_executor.models.decoder import Decoder
from gpu_executor.models.loader import load_model, resolve_dtype, weight_table
from gpu_executor.models.tower_loader import load_tower
from kernels.quantized_linear import PackedWeight
from tests.gpu_executor.models.checkpoints import Case, case_of, hub_tensors, tiny_model, write
from tests.gpu_executor.models.media_cases.llava import LLAVA_CLIP
from tests.gpu_executor.models.paged import run_in_chunks
from tests.gpu_executor.quant import quantizers
from tests.gpu_executor.quant.quantizers import SCHEMES, Scheme, Tensors, gptq, quantize_checkpoint, scheme_of

PROMPT = [11, 5, 190, 42, 7, 77, 3, 101, 64, 150, 28]
# Every layer's matrices have a multiple of 8 outputs and inputs, as formats of four bits ask for.
_DEEPSEEK = {"kv_lora_rank": 32, "q_lora_rank": 32, "v_head_dim": 8, "moe_intermediate_size": 32}
CASES = [
    case_of("llama"),
    case_of("qwen2"),
    case_of("phi3-window"),
    case_of("gpt-bigcode"),
    case_of("falcon-40b"),
    case_of("gptj"),
    case_of("mixtral"),
    dataclasses.replace(case_of("deepseek-v2"), config=case_of("deepseek-v2").config | _DEEPSEEK),
    case_of("jamba"),
    case_of("gpt2"),
]


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """A quantized checkpoint, and the folder of the plain one that it stands for."""

    folder: Path
    plain: Path
    names: list[str]  # of the quantized matrices


def write_both(folder: Path, case: Case, scheme: Scheme, change: Tensors | None = None, num_shards: int = 1) -> Written:
    tensors = hub_tensors(tiny_model(case), case)
    stored, meant, names = quantize_checkpoint(tensors, scheme, inputs_first=case.architecture == "GPT2LMHeadModel")
    write(folder / "plain", case, meant)
    quantized = dataclasses.replace(case, config=case.config | {"quantization_config": scheme.config})
    # Scales keep their own formats, so that nothing but the rounding of sums is left to differ.
    write(folder / "quantized", quantized, stored | (change or {}), num_shards=num_shards)
    return Written(folder / "quantized", folder / "plain", names)


def load(folder: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> Decoder:
    config = json.loads((folder / "config.json").read_text())
    return load_model(folder, config, dtype=dtype, device=torch.device("cpu"), progress=False, **options)


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error < 1e-4, f"relative error {error:.1e}"  # NaN fails too
    assert torch.equal(got.argmax(-1), want.argmax(-1))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_scheme_is_what_it_stands_for(tmp_path: Path, scheme: Scheme) -> None:
    written = write_both(tmp_path, case_of("llama"), scheme, num_shards=3)
    assert len(written.names) == 21
    plain = load(written.plain)
    want = run_in_chunks(plain, PROMPT, 4)
    unpacked = load(written.folder)
    for name, slot in plain.weights.slots.items():
        torch.testing.assert_close(unpacked.weights.slots[name], slot, rtol=1e-6, atol=0)
    assert_same(run_in_chunks(unpacked, PROMPT, 4), want)
    kept = load(written.folder, keep_quantized=True)
    assert len(kept.weights.packed) == 21 and not kept.weights.packed & kept.weights.slots.keys()
    assert_same(run_in_chunks(kept, PROMPT, 4), want)


@pytest.mark.parametrize(("case", "name"), [
    pytest.param(case, name, id=f"{case}-{name}")
    for case in CASES
    for name in ("gptq", "fp8-blocks", "pack-quantized-asymmetric-act-order")
    if (case.name, name) != ("gpt2", "fp8-blocks")  # nothing writes blocks of matrices that are stored as (in, out)
])  # fmt: skip
def test_every_kind_of_rule_takes_quantized_matrices(tmp_path: Path, case: Case, name: str) -> None:
    written = write_both(tmp_path, case, scheme_of(name))
    want = run_in_chunks(load(written.plain), PROMPT, 4)
    assert_same(run_in_chunks(load(written.folder), PROMPT, 4), want)
    kept = load(written.folder, keep_quantized=True)
    assert kept.weights.packed
    assert_same(run_in_chunks(kept, PROMPT, 4), want)


def mlp_of(model: Decoder, index: int) -> GatedMlp:
    return model._stack.blocks[index].mlp


def test_what_is_kept_is_multiplied_as_it_is_and_fused(tmp_path: Path) -> None:
    written = write_both(tmp_path, case_of("llama"), scheme_of("gptq"))
    mlp = mlp_of(load(written.folder, keep_quantized=True), 1)
    assert isinstance(mlp.gate_up.weight, PackedWeight) and isinstance(mlp.down.weight, PackedWeight)
    assert (mlp.gate_up.weight.kind, mlp.gate_up.weight.dout) == ("int4", 160)
    assert isinstance(mlp_of(load(written.folder), 1).gate_up.weight, torch.Tensor)  # as is usual on a CPU


def test_a_group_with_a_plain_part_is_plain(tmp_path: Path) -> None:
    """As where the config's "ignore" leaves out single layers."""
    scheme, name = scheme_of("awq"), "model.layers.1.mlp.up_proj"
    written = write_both(tmp_path, case_of("llama"), scheme)
    plain = load_file(written.plain / "model.safetensors")
    stored = {key: t for key, t in load_file(written.folder / "model.safetensors").items() if not key.startswith(name)}
    save_file(stored | {f"{name}.weight": plain[f"{name}.weight"]}, written.folder / "model.safetensors")
    kept = load(written.folder, keep_quantized=True)
    assert "layers.1.mlp.gate.weight" not in kept.weights.packed and "layers.1.mlp.down.weight" in kept.weights.packed
    assert_same(run_in_chunks(kept, PROMPT, 4), run_in_chunks(load(written.plain), PROMPT, 4))


def test_a_group_whose_parts_differ_in_form_is_plain(tmp_path: Path) -> None:
    """As where gptq's "dynamic" gives some layers other bits, or orders of inputs of their own."""
    case, name = case_of("llama"), "model.layers.1.mlp.up_proj"
    matrix = hub_tensors(tiny_model(case), case)[f"{name}.weight"]
    parts, meant = gptq(8)(matrix)
    written = write_both(tmp_path, case, scheme_of("gptq"), {f"{name}.{part}": value for part, value in parts.items()})
    plain = load_file(written.plain / "model.safetensors")
    save_file(plain | {f"{name}.weight": meant}, written.plain / "model.safetensors")
    kept = load(written.folder, keep_quantized=True)
    assert isinstance(mlp_of(kept, 1).gate_up.weight, torch.Tensor)
    assert_same(run_in_chunks(kept, PROMPT, 4), run_in_chunks(load(written.plain), PROMPT, 4))


def test_groups_that_the_kernel_does_not_take_are_made_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizers, "GROUP", 8)
    written = write_both(tmp_path, case_of("llama"), scheme_of("awq"))
    kept = load(written.folder, keep_quantized=True)
    assert isinstance(mlp_of(kept, 1).down.weight, torch.Tensor)
    assert_same(run_in_chunks(kept, PROMPT, 4), run_in_chunks(load(written.plain), PROMPT, 4))


def test_a_scale_of_all_fits_a_matrix_that_is_stored_inputs_first(tmp_path: Path) -> None:
    case, scheme = case_of("gpt2"), scheme_of("fp8-tensor")
    stored, meant, _ = quantize_checkpoint(hub_tensors(tiny_model(case), case), scheme)
    write(tmp_path / "plain", case, meant)
    write(
        tmp_path / "fp8", dataclasses.replace(case, config=case.config | {"quantization_config": scheme.config}), stored
    )
    want = run_in_chunks(load(tmp_path / "plain"), PROMPT, 4)
    for keep in (False, True):
        assert_same(run_in_chunks(load(tmp_path / "fp8", keep_quantized=keep), PROMPT, 4), want)


def test_the_models_number_format_is_that_of_what_is_made_plain(tmp_path: Path) -> None:
    written = write_both(tmp_path, case_of("llama"), scheme_of("fp8-blocks"))
    half, whole = load(written.folder, dtype=torch.bfloat16), load(written.plain)
    for name, slot in half.weights.slots.items():
        assert torch.equal(slot, whole.weights.slots[name].bfloat16())


def test_quantized_numbers_do_not_tell_the_models_number_format(tmp_path: Path) -> None:
    case = case_of("llama")
    stored, _, _ = quantize_checkpoint(hub_tensors(tiny_model(case), case), scheme_of("fp8-blocks"))
    write(tmp_path, case, stored, dtype=torch.bfloat16)
    assert resolve_dtype("auto", {}, torch.device("cpu"), folder=tmp_path) == torch.bfloat16


@pytest.mark.parametrize("name", ["pack-quantized", "fp8-blocks"])
def test_towers_may_be_quantized_too(tmp_path: Path, name: str) -> None:
    """Their modules are transformers' own, whose weights are plain: those of the language model behind them may stay."""
    written = write_both(tmp_path, LLAVA_CLIP.case, scheme_of(name))
    assert any("vision_tower" in name for name in written.names) and any("language" in name for name in written.names)
    plain, unpacked = load(written.plain).weights, load(written.folder).weights
    kept = load(written.folder, keep_quantized=True).weights
    assert unpacked.slots.keys() == plain.slots.keys() == kept.slots.keys() | kept.packed and kept.packed
    for weights in (unpacked, kept):
        for slot in weights.slots:
            torch.testing.assert_close(weights.slots[slot], plain.slots[slot], rtol=1e-6, atol=0)
    device, keys = torch.device("cpu"), json.loads((written.folder / "config.json").read_text())
    tower, _ = load_tower(written.folder, keys, dtype=torch.float32, device=device, progress=False)
    for parameter, value in tower.named_parameters():
        torch.testing.assert_close(value.data, plain.slots[f"tower.{parameter}"], rtol=1e-6, atol=0)


def test_scales_of_activations_and_of_the_cache_change_nothing(tmp_path: Path) -> None:
    layer = "model.layers.0.self_attn"
    names = ("k_scale", "v_scale", "q_proj.input_scale", "k_proj.output_scale", "o_proj.input_zero_point", "kv_scale")
    written = write_both(
        tmp_path, case_of("llama"), scheme_of("float-quantized"), {f"{layer}.{name}": torch.ones(1) for name in names}
    )
    assert_same(run_in_chunks(load(written.folder), PROMPT, 4), run_in_chunks(load(written.plain), PROMPT, 4))


def test_biases_of_zeros_beside_gptqs_matrices_need_no_place_in_the_model(tmp_path: Path) -> None:
    name = "model.layers.0.block_sparse_moe.experts.0.w1"
    written = write_both(tmp_path, case_of("mixtral"), scheme_of("gptq"), {f"{name}.bias": torch.zeros(80)})
    assert_same(run_in_chunks(load(written.folder), PROMPT, 4), run_in_chunks(load(written.plain), PROMPT, 4))
    written = write_both(tmp_path, case_of("mixtral"), scheme_of("gptq"), {f"{name}.bias": torch.ones(80)})
    with pytest.raises(CheckpointError, match=rf"tensors that this architecture does not: {name}\.bias"):
        load(written.folder)


def test_the_table_of_weights_has_a_row_for_a_matrix(tmp_path: Path) -> None:
    written = write_both(tmp_path, case_of("phi3-window"), scheme_of("pack-quantized"))
    _, rows = weight_table(written.folder, json.loads((written.folder / "config.json").read_text()))
    (row,) = [row for row in rows if row.canonical == "layers.2.mixer.k.weight"]
    assert row.stored.name == "model.layers.2.self_attn.qkv_proj.weight"
    assert row.stored.shape == (144, 48) and row.stored.dtype == "int4 (compressed-tensors)"
    assert not any("weight_" in row.stored.name for row in rows)


NAME = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    ("scheme", "change", "message"),
    [
        ("gptq", {"scales": None}, f"tensor {NAME}.qweight is quantized (gptq), but the checkpoint has no {NAME}.scales"),
        ("fp8-blocks", {"weight_scale_inv": None},
         f"{NAME}.weight is quantized (fp8), but the checkpoint has no {NAME}.weight_scale or {NAME}.weight_scale_inv"),
        ("fp8-blocks", {"weight_scale_inv": torch.ones(3, 3)}, f"tensor {NAME}.weight (fp8): a weight (48, 80) takes a scale"),
        ("gptq", {"qzeros": torch.zeros(5, 5, dtype=torch.int32)}, f"tensor {NAME}.weight (gptq): zeros [5, 5] are not those"),
        ("gptq", {"g_idx": torch.zeros(80, dtype=torch.int32)}, f"tensor {NAME}.weight (gptq): 5 groups of 80 inputs"),
        ("gptq", {"qweight": torch.zeros(9, 48, dtype=torch.int32)}, f"tensor {NAME}.weight (gptq): 5 groups of 72 inputs"),
        ("gptq", {"weight": torch.zeros(48, 80)}, f"tensor {NAME}.weight is in the checkpoint beside {NAME}.qweight"),
        ("awq", {"scales": torch.ones(4, 48)}, f"tensor {NAME}.weight (awq): an AWQ weight is"),
        ("pack-quantized", {"weight_shape": None},
         f"tensor {NAME}.weight_packed is quantized (compressed-tensors), but the checkpoint has no {NAME}.weight_shape"),
        ("pack-quantized", {"weight_shape": torch.tensor([48, 83])}, "rows of 10 words hold 83 inputs neither"),
        ("pack-quantized", {"weight_scale": torch.ones(48, 3)}, "3 groups are not those of a weight (48, 80)"),
        ("int-quantized", {"weight": torch.zeros(48, 80)}, f"tensors that this architecture does not: {NAME}.weight_scale"),
        ("int-quantized", {"weight": torch.zeros(48, 64, dtype=torch.int8)},
         f"tensor {NAME}.weight has shape [48, 64] as layers.1.mlp.down.weight; config.json asks for [48, 80]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("keep", [False, True], ids=["plain", "kept"])
def test_what_does_not_fit_is_named(
    tmp_path: Path, scheme: str, change: dict[str, torch.Tensor | None], message: str, keep: bool
) -> None:
    written = write_both(tmp_path, case_of("llama"), scheme_of(scheme))
    stored = load_file(written.folder / "model.safetensors")
    stored |= {f"{NAME}.{part}": value for part, value in change.items() if value is not None}
    for part in (part for part, value in change.items() if value is None):
        del stored[f"{NAME}.{part}"]
    save_file(stored, written.folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(written.folder, keep_quantized=keep)
    assert message in str(caught.value)
