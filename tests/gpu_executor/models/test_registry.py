"""Architectures are found by their name and by nothing else, and no other module knows those names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from forebay.errors import CheckpointError, UnknownArchitecture
from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from tests.gpu_executor.models.checkpoints import BASE

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("LlamaForCasualLM", "LlamaForCausalLM"), ("Qwen9ForCausalLM", "Qwen2ForCausalLM"), ("GPT2Model", "GPT2LMHeadModel")],
)  # fmt: skip
def test_an_unknown_architecture_is_refused_with_the_nearest_names(name: str, nearest: str) -> None:
    with pytest.raises(
        UnknownArchitecture, match=f"does not serve the architecture '{name}'; the nearest are .*{nearest}"
    ):
        registry.resolve(ConfigReader({"architectures": [name]}))


def test_an_architecture_like_none_points_to_the_list() -> None:
    with pytest.raises(UnknownArchitecture, match="`forebay models` lists"):
        registry.resolve(ConfigReader({"architectures": ["zzz"]}))


def test_the_first_known_of_several_architectures_serves() -> None:
    config = ConfigReader(BASE | {"architectures": ["EagleLlamaForCausalLM", "LlamaForCausalLM"]})
    assert registry.resolve(config).spec.architecture == "LlamaForCausalLM"


@pytest.mark.parametrize("value", [None, [], "LlamaForCausalLM", [1]], ids=["null", "empty", "text", "number"])
def test_a_config_must_name_its_architecture(value: object) -> None:
    with pytest.raises(CheckpointError, match="architectures"):
        registry.resolve(ConfigReader({"architectures": value}))


def test_the_table_says_what_each_architecture_does() -> None:
    table = {row.name: row for row in registry.architectures()}
    assert {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "GPT2LMHeadModel"} <= set(table)
    assert list(table) == sorted(table, key=str.lower)
    row = table["GPT2LMHeadModel"]
    assert (row.family, row.tasks, row.inputs) == ("gpt2", ("generate",), ("text",))
    assert all(row.examples for row in table.values())


def test_each_family_cites_its_paper() -> None:
    for path in (ROOT / "gpu_executor/models/families").glob("*.py"):
        if path.stem in {row.family for row in registry.architectures()}:
            first_line = path.read_text().splitlines()[0]
            assert re.search(r"\b(19|20)\d\d\b", first_line), f"{path.name}: {first_line}"


def test_architecture_names_and_tensor_names_are_known_to_families_alone() -> None:
    names = {row.name for row in registry.architectures()}
    words = re.compile(r"\b(" + "|".join(map(re.escape, sorted(names))) + r"|\w+For(?:CausalLM|ConditionalGeneration)|"
                       r"self_attn|embed_tokens|q_proj|c_attn)\b")  # fmt: skip
    may_name = {ROOT / "gpu_executor/models/families", ROOT / "preprocess/processors"}
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for package in ("gpu_executor", "kernels", "forebay", "frontend", "preprocess")
        for path in (ROOT / package).rglob("*.py")
        if may_name.isdisjoint(path.parents)
        for match in words.finditer(path.read_text())
    ]
    assert not found
