"""What an operator changes in config.json holds in the CPU tier too: which processor, which tiles, which ids."""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from forebay.client_requests import to_prompt
from forebay.fingerprint import model_digest
from forebay.flags import add_flags, read_config
from frontend.config import FrontendConfig
from frontend.main import load_model_folder
from preprocess.config import PreprocessConfig
from preprocess.media.settings import MediaSettings
from preprocess.model_folder import ModelFolder
from preprocess.preprocessor import Preprocessor
from tests.golden.materialize import read_golden, write_files

GOLDEN = read_golden("media/InternVLChatModel")  # cuts pictures into as many tiles as config.json says


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_files(GOLDEN, tmp_path)
    return tmp_path


def opened(folder: Path, overrides: dict[str, Any] | None) -> ModelFolder:
    return ModelFolder.open(
        str(folder),
        revision=None,
        download_dir=None,
        tokenizer=None,
        trust_remote_code=False,
        media=MediaSettings(),
        hf_overrides=overrides,
    )


def num_features(preprocessor: Preprocessor) -> int:
    case = next(case for case in GOLDEN["cases"] if len(case.get("images") or []) == 1)
    image = base64.b64decode(case["images"][0])
    prompt = to_prompt({"prompt": "<image>", "multi_modal_data": {"image": image}, "parse_special_tokens": True})
    (placed,) = preprocessor.encode_prompt(prompt).media
    return placed.item.num_features


def test_settings_of_the_processor_can_be_changed(folder: Path) -> None:
    plain, one_tile = (opened(folder, overrides) for overrides in (None, {"max_dynamic_patch": 1}))
    assert num_features(plain.preprocessor) > num_features(one_tile.preprocessor)


def test_a_section_is_changed_key_by_key(folder: Path) -> None:
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    halved = opened(folder, {"max_dynamic_patch": 1, "vision_config": {"patch_size": vision["patch_size"] * 2}})
    assert num_features(halved.preprocessor) < num_features(opened(folder, {"max_dynamic_patch": 1}).preprocessor)


def test_the_architecture_can_be_another(folder: Path) -> None:
    assert opened(folder, None).preprocessor.modalities == ("image",)
    assert opened(folder, {"architectures": ["Qwen2ForCausalLM"]}).preprocessor.modalities == ()


def test_ids_can_be_others(folder: Path) -> None:
    assert 7 not in opened(folder, None).preprocessor.eos_token_ids
    assert 7 in opened(folder, {"eos_token_id": 7}).preprocessor.eos_token_ids


def test_a_fingerprint_is_of_the_files(folder: Path) -> None:
    """As executors give it: tiers are compared by what they hold."""
    found = opened(folder, {"architectures": ["Other"], "eos_token_id": 7})
    assert found.fingerprint == opened(folder, None).fingerprint
    assert found.fingerprint.model_digest == model_digest(json.loads((folder / "config.json").read_text()))


def test_a_frontend_serves_what_it_is_told_the_model_is(folder: Path) -> None:
    config = FrontendConfig(
        str(folder), executors="localhost:1", media_workers=1, hf_overrides={"architectures": ["Qwen2ForCausalLM"]}
    )
    _, served, _ = load_model_folder(config)
    assert served.architecture == "Qwen2ForCausalLM" and served.preprocessor.modalities == ()


@pytest.mark.parametrize("config", [FrontendConfig, PreprocessConfig])
def test_every_service_of_the_tier_has_the_flag(config: type) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, config)
    given = ["MODEL", "--hf-overrides", '{"vision_config": {"image_size": 28}}']
    if config is FrontendConfig:
        given += ["--executors", "localhost:1"]
    assert read_config(config, parser.parse_args(given)).hf_overrides == {"vision_config": {"image_size": 28}}
