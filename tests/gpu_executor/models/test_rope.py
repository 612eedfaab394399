"""Every rope scaling gives transformers' frequencies, at the sizes of the models that brought it up."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from forebay.errors import CheckpointError
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.rope import RopeTables, cos_sin_table, frequencies, read_context, read_rope
from gpu_executor.models.spec import LongRopeScaling, Rope

LONG = [1.0 + i / 7 for i in range(48)]
SHORT = [1.0 + i / 90 for i in range(48)]
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-2": {"head_dim": 128, "max_position_embeddings": 4096},
    "llama-3.1": {"head_dim": 128, "max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}},
    "llama-3.2": {"head_dim": 64, "max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}},
    "vicuna-16k": {"head_dim": 128, "max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"head_dim": 128, "max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "qwen2.5-yarn": {"head_dim": 128, "max_position_embeddings": 32768, "rope_theta": 1e6, "rope_scaling": {
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
    "yarn-without-length": {"head_dim": 64, "max_position_embeddings": 8192, "rope_scaling": {"type": "yarn", "factor": 2.0}},
    "yarn-of-deepseek": {"head_dim": 64, "max_position_embeddings": 163840, "rope_scaling": {
        "type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.5,
        "original_max_position_embeddings": 4096}},
    "yarn-of-gpt-oss": {"head_dim": 64, "max_position_embeddings": 131072, "rope_theta": 150000.0, "rope_scaling": {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096}},
    "longrope-short": {"head_dim": 96, "max_position_embeddings": 4096, "rope_scaling": {
        "type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 32.0,
        "original_max_position_embeddings": 4096}},
    "new-keys": {"head_dim": 64, "max_position_embeddings": 8192, "rope_parameters": {
        "rope_type": "linear", "factor": 3.0, "rope_theta": 77777.0}},
    "length-beside-the-scaling-wins": {"head_dim": 64, "max_position_embeddings": 8192,
        "original_max_position_embeddings": 512, "rope_scaling": {"type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 2048}},
}  # fmt: skip


def reader(name: str, max_model_len: int | None = None, **changes: Any) -> ConfigReader:
    return ConfigReader(CONFIGS[name] | changes, max_model_len)


def theirs(keys: dict[str, Any], seq_len: int | None = None) -> tuple[torch.Tensor, float]:
    config = transformers.LlamaConfig(hidden_size=keys["head_dim"] * 2, num_attention_heads=2, **keys)
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        default = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding.compute_default_rope_parameters
        return default(config)
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=seq_len)


@pytest.mark.parametrize("name", CONFIGS)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    got, magnitude = frequencies(read_rope(reader(name), CONFIGS[name]["head_dim"]))
    want, want_magnitude = theirs(CONFIGS[name])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    assert magnitude == pytest.approx(want_magnitude, rel=1e-12)


@pytest.mark.parametrize("length_key", ["inside", "beside"])
def test_longrope_has_factors_for_both_sides_of_the_trained_length(length_key: str) -> None:
    scaling = {"type": "su", "short_factor": SHORT, "long_factor": LONG}
    keys = {"max_position_embeddings": 131072, "rope_scaling": scaling}
    target = keys if length_key == "beside" else scaling
    target["original_max_position_embeddings"] = 4096
    rope = read_rope(ConfigReader(keys), 96)
    assert isinstance(rope.scaling, LongRopeScaling)
    assert (list(rope.scaling.factors), list(rope.scaling.long.factors)) == (SHORT, LONG)
    assert rope.scaling.trained_len == 4096
    scaling["type"] = "longrope"
    for length, scaled in ((4096, rope), (4097, dataclasses.replace(rope, scaling=rope.scaling.long))):
        want, magnitude = theirs(keys | {"head_dim": 96}, seq_len=length)
        torch.testing.assert_close(frequencies(scaled)[0], want, rtol=1e-6, atol=0)
        assert scaled.scaling.magnitude == pytest.approx(magnitude)


def test_rows_behind_the_trained_length_are_those_of_longer_sequences() -> None:
    rope = Rope(4, 10000.0, LongRopeScaling((1.0, 2.0), 1.1, (1.0, 4.0), 1.2, 6))
    table = RopeTables(10, torch.device("cpu"), 6)(rope)
    short, long = cos_sin_table(rope, 6), cos_sin_table(dataclasses.replace(rope, scaling=rope.scaling.long), 10)
    assert torch.equal(table, torch.cat((short, long)))
    plain = Rope(4, 10000.0)
    assert torch.equal(RopeTables(10, torch.device("cpu"), 6)(plain)[6:], cos_sin_table(plain, 10))


def test_dynamic_changes_nothing_until_more_than_the_trained_length_is_served() -> None:
    plain = Rope(128, 10000.0)
    assert read_rope(reader("dynamic"), 128) == plain
    assert read_rope(reader("dynamic", 4096), 128) == plain
    stretched = read_rope(reader("dynamic", 4097), 128)
    want, _ = theirs(CONFIGS["dynamic"], seq_len=4 * 4096)  # vLLM: one theta, that of factor * the trained length
    torch.testing.assert_close(frequencies(stretched)[0], want, rtol=1e-6, atol=0)
    assert read_rope(reader("dynamic", 16384), 128) == stretched


@pytest.mark.parametrize(
    ("name", "default", "most"),
    [
        ("llama-2", 4096, 4096), ("llama-3.1", 131072, 131072), ("vicuna-16k", 16384, 16384), ("dynamic", 4096, 16384),
        ("qwen2.5-yarn", 131072, 131072), ("yarn-of-deepseek", 163840, 163840), ("new-keys", 24576, 24576),
        ("longrope-short", 4096, 4096),
    ],
)  # fmt: skip
def test_context_is_stretched_by_the_scaling(name: str, default: int, most: int) -> None:
    assert read_context(reader(name)) == default
    assert read_context(reader(name, most)) == most
    assert read_context(reader(name, 100)) == 100
    with pytest.raises(CheckpointError, match=f"max_model_len is {most + 1:,}; this model takes {most:,}"):
        read_context(reader(name, most + 1))


def test_an_override_of_the_classic_key_wins_and_keeps_the_theta_of_the_new_one() -> None:
    new = {"rope_type": "default", "rope_theta": 1e6}
    config = {"max_position_embeddings": 100, "rope_parameters": new, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert read_rope(ConfigReader(config), 8) == read_rope(
        ConfigReader({"rope_parameters": {"type": "linear", "factor": 2, "rope_theta": 1e6}}), 8
    )


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "ntk-by-hand"}, "type of rope_scaling of config.json is 'ntk-by-hand'; it must be one of default,"),
        ({"type": "linear"}, "rope_scaling of config.json has no factor"),
        ({"type": "linear", "factor": "8"}, "factor of rope_scaling of config.json is '8'; it must be a number"),
        ({"type": "linear", "factor": 0}, "must be a number above 0"),
        ({"type": "llama3", "factor": 8}, "has no low_freq_factor"),
        ({"type": "longrope", "short_factor": [1.0] * 3}, "short_factor of rope_scaling .* must be a list of 4 numbers"),
        ({"type": "longrope", "short_factor": [1, 1, 1, -1]}, "must be a list of 4 numbers above 0"),
        ("linear", "rope_scaling of config.json is 'linear'; it must be an object"),
        ({"type": "mrope", "mrope_section": [1, 1]}, "mrope_section of rope_scaling .* sum up to 4"),
        ({"type": "mrope", "mrope_section": [2, 3, -1]}, "must be a list of whole numbers above 0"),
        ({"type": "mrope", "mrope_section": [2, 1, 1], "mrope_interleaved": True}, "mrope_interleaved .* must be false"),
    ],
    ids=["unknown", "no-factor", "text", "zero", "missing-key", "short-longrope", "negative-longrope", "no-object",
         "short-sections", "negative-section", "interleaved"],
)  # fmt: skip
def test_a_scaling_that_cannot_be_is_named(scaling: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_rope(ConfigReader({"max_position_embeddings": 64, "rope_scaling": scaling}), 8)


def test_an_odd_head_cannot_rotate() -> None:
    with pytest.raises(CheckpointError, match="rotates 7 dimensions"):
        read_rope(ConfigReader({}), 7)


def test_tables_hold_cosines_then_sines_with_the_magnitude_and_are_shared() -> None:
    rope = read_rope(reader("qwen2.5-yarn"), 128)
    table = cos_sin_table(rope, 50)
    inverse, magnitude = frequencies(rope)
    assert table.shape == (50, 128) and table.dtype == torch.float32
    assert magnitude == pytest.approx(0.1 * math.log(4) + 1)
    torch.testing.assert_close(table[49, :64], (49 * inverse).cos() * magnitude)
    torch.testing.assert_close(table[49, 64:], (49 * inverse).sin() * magnitude)
    tables = RopeTables(50, torch.device("cpu"))
    assert tables(rope) is tables(read_rope(reader("qwen2.5-yarn"), 128))


@pytest.mark.parametrize(
    "scaling",
    [{"type": "mrope"}, {"rope_type": "default", "type": "mrope"}, {"type": "yarn", "factor": 2.0}],
    ids=["hub", "transformers-5", "stretched"],
)
def test_sections_come_with_any_scaling_and_change_no_frequency(scaling: dict[str, Any]) -> None:
    """Qwen2-VL's `mrope` is the default otherwise, and Qwen2.5-VL is stretched with yarn and sections."""
    config = {"max_position_embeddings": 64, "rope_theta": 1e6}
    rope = read_rope(ConfigReader(config | {"rope_scaling": scaling | {"mrope_section": [16, 24, 24]}}), 128)
    plain = read_rope(ConfigReader(config | ({"rope_scaling": scaling} if "factor" in scaling else {})), 128)
    assert rope.sections == (16, 24, 24)
    assert dataclasses.replace(rope, sections=()) == plain
