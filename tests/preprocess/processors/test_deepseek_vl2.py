"""Pictures of DeepSeek-VL2 become the reference's tiles and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImages

from forebay.errors import CheckpointError, InvalidRequest
from preprocess.media.decoded import Embeddings, Image
from preprocess.processors.deepseek_vl2 import best_size
from tests.golden.media_cases import (
    case_of,
    check_ids_expand_as_text,
    check_pixels,
    encode_case,
    items_of,
    media_golden,
    normalized_pixels,
    processor_of,
    prompt_text,
)

NAME = "DeepseekVLV2ForCausalLM"


@pytest.mark.parametrize("case", media_golden(NAME)["cases"], ids=lambda case: case["name"])
def test_prompts_and_pixels_are_the_references(case: dict[str, Any], tmp_path: Path) -> None:
    processor, tokenizer = processor_of(media_golden(NAME), tmp_path)
    assert encode_case(processor, tokenizer, case).token_ids == case["input_ids"]
    if case.get("processor"):
        items = items_of(processor, case)
        grids = [item.tensors["images_spatial_crop"].tolist() for item in items]
        assert grids == case["processor"]["images_spatial_crop"]
        check_pixels(np.concatenate([normalized_pixels(item) for item in items]), case["processor"]["pixel_values"])


def test_ids_are_expanded_as_text_is(tmp_path: Path) -> None:
    check_ids_expand_as_text(media_golden(NAME), "two images", tmp_path)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((384, 384), (384, 384)), ((700, 380), (768, 384)), ((100, 30), (384, 384)), ((1000, 2000), (768, 1152))],
    ids=["as it is", "two tiles", "small: the least waste", "large: the most pixels"],
)
def test_the_best_size_keeps_most_and_wastes_least(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert best_size(size, [(384, 384), (768, 384), (384, 768), (768, 768), (768, 1152)]) == wanted


def test_the_first_token_begins_the_text_even_if_the_tokenizer_adds_none(tmp_path: Path) -> None:
    golden = media_golden(NAME)
    golden["files"]["tokenizer.json"]["post_processor"] = None
    processor, tokenizer = processor_of(golden, tmp_path)
    case = case_of(golden, "square image")
    assert encode_case(processor, tokenizer, case).token_ids == case["input_ids"]
    in_chat = prompt_text(case["prompt"], tokenizer, adds_special_tokens=False)
    assert processor.expand_text(in_chat, items_of(processor, case)).token_ids == case["input_ids"][1:]


def test_a_config_that_names_no_architecture_is_told_by_its_sections(tmp_path: Path) -> None:
    golden = media_golden(NAME)
    del golden["files"]["config.json"]["architectures"]
    processor, _ = processor_of(golden, tmp_path)
    assert processor.modalities == ("image",)


def test_what_config_does_not_say_is_the_released_models(tmp_path: Path) -> None:
    golden = media_golden(NAME)
    del golden["files"]["processor_config.json"], golden["files"]["config.json"]["candidate_resolutions"]
    processor, _ = processor_of(golden, tmp_path)
    item = processor.prepare(Image(PilImages.new("RGB", (700, 380))), 1)
    assert item.tensors["pixels"].shape == (3, 3, 384, 384)
    assert item.num_features == 14 * 15 + 1 + 14 * 29


def test_pictures_and_embeddings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    processor, _ = processor_of(media_golden(NAME), tmp_path)
    with pytest.raises(InvalidRequest, match="1000 x 3 is too narrow"):
        processor.prepare(Image(PilImages.new("RGB", (1000, 3))), 1)
    with pytest.raises(InvalidRequest, match="have 12 rows"):
        processor.accept(Embeddings("image", (np.zeros((12, 64), np.float32),), {}))
    assert processor.accept(Embeddings("image", (np.zeros((13, 64), np.float32),), {}))[0].num_features == 13


def test_sizes_that_are_no_whole_tiles_are_refused(tmp_path: Path) -> None:
    golden = media_golden(NAME)
    golden["files"]["processor_config.json"]["candidate_resolutions"] = [[56, 56], [56, 100]]
    with pytest.raises(CheckpointError, match=r"candidate_resolutions of processor_config\.json"):
        processor_of(golden, tmp_path)
