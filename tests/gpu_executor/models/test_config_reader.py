"""config.json is read as data: by any of a key's names, with errors that name the key."""

from __future__ import annotations

from typing import Any

import pytest

from forebay.errors import CheckpointError
from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.spec import Attention
from tests.gpu_executor.models.cases.gpt2 import GPT2
from tests.gpu_executor.models.checkpoints import BASE


def test_null_counts_as_missing() -> None:
    config = ConfigReader({"a": None, "b": 2})
    assert config("a", "b") == 2
    assert config("a", default=7) == 7
    assert config.has("a") and not config.has("c")
    with pytest.raises(CheckpointError, match=r"config.json has no a or c"):
        config("a", "c")


def test_defaults_stand_for_what_is_missing_or_null() -> None:
    config = ConfigReader({"a": None, "b": False}, 7, "here").with_defaults(a=1, b=True, c=3)
    assert config.data == {"a": 1, "b": False, "c": 3}
    assert (config.max_model_len, config.where) == (7, "here")


@pytest.mark.parametrize(
    ("method", "value"),
    [("integer", 0), ("integer", -1), ("integer", True), ("integer", 1.5), ("integer", "3"), ("number", 0), ("number", "1"),
     ("number", float("nan")), ("number", float("inf")), ("flag", 1), ("flag", "true"), ("activation", "sigmoidish"),
     ("section", [1])],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_named(method: str, value: Any) -> None:
    options = {"flag": {"default": False}, "activation": {"default": "silu"}}.get(method, {})
    with pytest.raises(CheckpointError, match=r"key of config.json is .*; it must be"):
        getattr(ConfigReader({"key": value}), method)("other_name", "key", **options)


def test_sections_say_where_they_are() -> None:
    section = ConfigReader({"text": {"heads": "x"}}).section("text")
    with pytest.raises(CheckpointError, match=r"heads of text of config.json is 'x'"):
        section.integer("heads")
    assert ConfigReader({}).section("text").data == {}


@pytest.mark.parametrize(
    ("name", "ours"), [("swish", "silu"), ("gelu_new", "gelu_tanh"), ("gelu", "gelu"), ("relu", "relu")]
)
def test_activations_have_one_name(name: str, ours: str) -> None:
    assert ConfigReader({"hidden_act": name}).activation("hidden_act", default="silu") == ours


def mixers(architecture: str, **config: Any) -> list[Attention]:
    base = GPT2 if architecture.startswith("GPT2") else BASE
    resolved = registry.resolve(ConfigReader(base | {"architectures": [architecture]} | config))
    return [layer.mixer for layer in resolved.spec.decoder.layers]


def test_a_missing_window_is_the_published_one_and_null_is_none() -> None:
    assert {m.window for m in mixers("MistralForCausalLM")} == {4096}
    assert {m.window for m in mixers("MistralForCausalLM", sliding_window=None)} == {None}
    assert {m.window for m in mixers("MistralForCausalLM", sliding_window=7)} == {7}


def test_upper_layers_have_the_window_only_where_it_is_used() -> None:
    def windows(**config: Any) -> list[int | None]:
        return [m.window for m in mixers("Qwen2ForCausalLM", **config)]

    assert windows(sliding_window=8, max_window_layers=0) == [None] * 3
    used = {"use_sliding_window": True, "sliding_window": 8}
    assert windows(**used, max_window_layers=1) == [None, 8, 8]
    assert windows(**used) == [None] * 3  # the first 28 layers have none
    assert windows(**used, layer_types=["sliding_attention", "full_attention", "full_attention"]) == [8, None, None]
    with pytest.raises(CheckpointError, match=r"layer_types of config.json .* it must be 3 of"):
        windows(**used, layer_types=["full_attention"])


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"hidden_size of config.json is 48; it must be a multiple of its 5 heads"
    ):
        mixers("LlamaForCausalLM", num_attention_heads=5, num_key_value_heads=None)
    with pytest.raises(CheckpointError, match=r"num_key_value_heads of config.json is 4; it must be a divisor of 6"):
        mixers("LlamaForCausalLM", num_key_value_heads=4)
    with pytest.raises(CheckpointError, match=r"n_embd of config.json is 50; it must be a multiple of its 4 heads"):
        mixers("GPT2LMHeadModel", n_embd=50)


def test_scores_can_be_scaled_by_layer_or_not_at_all() -> None:
    head_dim = 12
    assert [m.scale for m in mixers("GPT2LMHeadModel", scale_attn_by_inverse_layer_idx=True)] == pytest.approx(
        [head_dim**-0.5, head_dim**-0.5 / 2, head_dim**-0.5 / 3]
    )
    assert {m.scale for m in mixers("GPT2LMHeadModel", scale_attn_weights=False)} == {1.0}


def test_learned_positions_bound_the_context() -> None:
    with pytest.raises(CheckpointError, match="max_model_len is 257; this model takes 256"):
        registry.resolve(ConfigReader(GPT2 | {"architectures": ["GPT2LMHeadModel"]}, max_model_len=257))


def test_an_updated_config_has_other_values_and_the_rest_as_it_was() -> None:
    config = ConfigReader({"a": 1, "b": 2}, 7, "x.json")
    updated = config.updated({"b": 3, "c": 4, "a": None})
    assert (updated.data, updated.max_model_len, updated.where) == ({"a": 1, "b": 3, "c": 4}, 7, "x.json")
    assert config.data == {"a": 1, "b": 2}
