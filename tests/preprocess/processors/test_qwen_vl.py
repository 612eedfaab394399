"""Pictures of Qwen-VL become the reference's square and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImages

from forebay.errors import InvalidRequest
from preprocess.media.decoded import Embeddings, Image
from preprocess.processors.registry import load_processor
from preprocess.tokenizer_adapters.recipes import find_recipe
from tests.golden.materialize import read_golden, write_files
from tests.golden.media_cases import (
    check_ids_expand_as_text,
    check_pixels,
    encode_case,
    items_of,
    media_golden,
    normalized_pixels,
    processor_of,
)

NAME = "QWenLMHeadModel-vl"


@pytest.mark.parametrize("case", media_golden(NAME)["cases"], ids=lambda case: case["name"])
def test_prompts_and_pixels_are_the_references(case: dict[str, Any], tmp_path: Path) -> None:
    processor, tokenizer = processor_of(media_golden(NAME), tmp_path)
    assert encode_case(processor, tokenizer, case).token_ids == case["input_ids"]
    if case.get("processor"):
        pixels = np.stack([normalized_pixels(item) for item in items_of(processor, case)])
        check_pixels(pixels, case["processor"]["pixel_values"])


def test_ids_are_expanded_as_text_is(tmp_path: Path) -> None:
    check_ids_expand_as_text(media_golden(NAME), "two images", tmp_path)


def test_a_picture_of_448_pixels_is_256_tokens_where_config_does_not_say(tmp_path: Path) -> None:
    golden = media_golden(NAME)
    visual = golden["files"]["config.json"]["visual"]
    del visual["n_queries"], visual["image_size"]
    processor, _ = processor_of(golden, tmp_path)
    item = processor.prepare(Image(PilImages.new("RGBA", (5, 900))), 1)
    assert item.tensors["pixels"].shape == (3, 448, 448)
    assert item.num_features == 256


def test_embeddings_of_other_rows_are_refused(tmp_path: Path) -> None:
    processor, _ = processor_of(media_golden(NAME), tmp_path)
    assert len(processor.accept(Embeddings("image", (np.zeros((2, 4, 128), np.float32),), {}))) == 2
    with pytest.raises(InvalidRequest, match="have 5 rows; the items need 4"):
        processor.accept(Embeddings("image", (np.zeros((5, 128), np.float32),), {}))


def test_qwen_without_pictures_has_no_processor(tmp_path: Path) -> None:
    write_files(read_golden("QWenLMHeadModel"), tmp_path)
    _, tokenizer = processor_of(media_golden(NAME), tmp_path / "vl")
    assert load_processor(tmp_path, tokenizer) is None


def test_tokens_of_pictures_follow_those_of_qwen() -> None:
    settings = {"tokenizer_class": "QWenTokenizer"}
    plain = find_recipe(settings, {}, is_tiktoken=False)
    visual = find_recipe(settings, {"visual": {"image_start_id": 151857}}, is_tiktoken=False)
    assert visual.extra_tokens[: len(plain.extra_tokens)] == plain.extra_tokens
    assert 151643 + visual.extra_tokens.index("<img>") == 151857
    assert "<img>" not in plain.extra_tokens
