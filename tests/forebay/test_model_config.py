"""A model folder has a config.json, or mistral's params.json; what ends a sequence is known of both; keys can be changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forebay.hub import resolve_model
from forebay.model_config import apply_overrides, model_config_path


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("params.json",), "params.json"),
        (("params.json", "config.json"), "config.json"),
        ((), "config.json"),
    ],
    ids=str,
)
def test_config_json_is_preferred(names: tuple[str, ...], found: str, tmp_path: Path) -> None:
    assert model_config_path(write(tmp_path, {name: {} for name in names})).name == found


def test_a_folder_in_mistral_format_is_a_model(tmp_path: Path) -> None:
    assert resolve_model(str(write(tmp_path, {"params.json": {}})), weights=False) == tmp_path


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({"params.json": {"dim": 8}}, (2,)),
        ({"config.json": {"text_config": {"eos_token_id": 7}}}, (7,)),
        ({"config.json": {"eos_token_id": [5, 6], "text_config": {"eos_token_id": 7}}}, (5, 6)),
        ({"config.json": {"eos_token_id": 5}, "generation_config.json": {"eos_token_id": 9}}, (9,)),
        ({"config.json": {}}, ()),
    ],
    ids=["params", "text-section", "top", "generation", "none"],
)
def test_ids_that_end_a_sequence(files: dict[str, Any], eos: tuple[int, ...], tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed: the executor needs it")
    from gpu_executor.model_info import eos_token_ids, read_model_config

    folder = write(tmp_path, files)
    assert eos_token_ids(folder, read_model_config(folder, None)) == eos


def test_overrides_are_merged_key_by_key_and_leave_the_original() -> None:
    config = {"a": 1, "nested": {"b": 1, "c": {"d": 1}}, "list": [1]}
    merged = apply_overrides(config, {"nested": {"c": {"e": 2}}, "list": [2], "new": {"x": 1}, "a": None})
    assert merged == {"a": None, "nested": {"b": 1, "c": {"d": 1, "e": 2}}, "list": [2], "new": {"x": 1}}
    assert config == {"a": 1, "nested": {"b": 1, "c": {"d": 1}}, "list": [1]}
