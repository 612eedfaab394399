"""What config.json says of quantization becomes a scheme, and what is not served is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from forebay.errors import CheckpointError, NotOffered
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.quant.config import Scheme, read_scheme
from tests.gpu_executor.quant.quantizers import SCHEMES
from tests.gpu_executor.quant.quantizers import Scheme as Case


def read(config: dict[str, Any]) -> Scheme | None:
    return read_scheme(ConfigReader({"quantization_config": config}))


@pytest.mark.parametrize("case", SCHEMES, ids=str)
def test_served_schemes_are_read(case: Case) -> None:
    scheme = read(case.config)
    assert scheme is not None and scheme.method == case.config["quant_method"]


def test_what_tensors_do_not_say_is_read() -> None:
    assert read({"quant_method": "gptq", "bits": 4, "group_size": 64}) == Scheme("gptq", zero_offset=1, group_size=64)
    assert read({"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq_v2"}) == Scheme("gptq", zero_offset=0)
    assert read({"quant_method": "fp8", "weight_block_size": [64, 32]}) == Scheme("fp8", block=(64, 32))
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 64]}
    groups = {"group_0": {"weights": weights, "format": "float-quantized"}}
    mixed = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    assert read(mixed) == Scheme("compressed-tensors", block=(128, 64))
    assert read({"quant_method": "fbgemm_fp8"}) == Scheme("fp8")


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "awq"}},
        {"compression_config": {"quant_method": "awq"}},
        {"text_config": {"quantization_config": {"quant_method": "awq"}}},
    ],
    ids=["quantization", "compression", "of-the-text-model"],
)
def test_it_is_found_wherever_checkpoints_have_it(config: dict[str, Any]) -> None:
    assert read_scheme(ConfigReader(config)) == Scheme("awq")


def test_without_such_a_section_nothing_is_quantized() -> None:
    assert read_scheme(ConfigReader({"quantization_config": None, "text_config": {}})) is None


def compressed(**keys: Any) -> dict[str, Any]:
    weights = keys.pop("weights", {"num_bits": 4})
    section = {"format": "pack-quantized", "config_groups": {"group_0": {"weights": weights}}}
    return {"quant_method": "compressed-tensors", **section, **keys}


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"bits": 4}, "?"),
        ({"quant_method": "gptq", "bits": 3}, "gptq with bits 3"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "gptq with checkpoint_format marlin"),
        ({"quant_method": "awq", "version": "gemv"}, "awq with version gemv"),
        (compressed(format="nvfp4-pack-quantized"), "compressed-tensors in the format nvfp4-pack-quantized"),
        (compressed(weights={"num_bits": 2}), "compressed-tensors in 2 bits"),
        (compressed(sparsity_config={"format": "sparse-24-bitmask"}), "compressed-tensors with sparse weights"),
        (compressed(transform_config={"config_groups": {"R1": {}}}), "compressed-tensors with transforms"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_served_is_named_beside_what_is(config: dict[str, Any], what: str) -> None:
    with pytest.raises(NotOffered) as caught:
        read(config)
    assert f"is quantized with {what}, which is not served; served are fp8, compressed-tensors" in caught.value.message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptq", "group_size": 0}, "group_size of quantization_config of config.json is 0"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size of quantization_config"),
    ],
    ids=["group-size", "block-size"],
)
def test_wrong_keys_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(config)
    assert message in caught.value.message
