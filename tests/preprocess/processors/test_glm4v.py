"""Pictures of GLM-4V become the reference's square, tokens and positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forebay.errors import InvalidRequest
from preprocess.media.decoded import Embeddings
from preprocess.processors.registry import load_processor
from tests.golden.materialize import read_golden, write_files
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

NAME = "ChatGLMModel-glm4v"


@pytest.mark.parametrize("case", media_golden(NAME)["cases"], ids=lambda case: case["name"])
def test_prompts_pixels_and_positions_are_the_references(case: dict[str, Any], tmp_path: Path) -> None:
    processor, tokenizer = processor_of(media_golden(NAME), tmp_path)
    encoded = encode_case(processor, tokenizer, case)
    assert encoded.token_ids == case["input_ids"]
    if case.get("processor"):
        pixels = np.stack([normalized_pixels(item) for item in items_of(processor, case)])
        check_pixels(pixels, case["processor"]["pixel_values"])
        assert encoded.positions.tolist() == [case["processor"]["position_ids"]]
    else:
        assert encoded.positions is None


def test_ids_are_expanded_as_text_is(tmp_path: Path) -> None:
    check_ids_expand_as_text(media_golden(NAME), "image after text", tmp_path)


def test_each_picture_is_one_position_further(tmp_path: Path) -> None:
    golden = media_golden(NAME)
    processor, tokenizer = processor_of(golden, tmp_path)
    items = items_of(processor, case_of(golden, "one image")) * 2
    marker = processor.chat_marker("image", 0)
    encoded = processor.expand_text(prompt_text(f"a{marker}{marker}b", tokenizer), items)
    assert encoded.positions.tolist() == [[0, 1, 2, 2, 2, 2, 3, 4, 5, 5, 5, 5, 6, 7]]
    assert [placed.spans for placed in encoded.media] == [((1, 6),), ((7, 6),)]


def test_the_end_of_text_in_a_prompt_is_no_picture(tmp_path: Path) -> None:
    golden = media_golden(NAME)
    processor, tokenizer = processor_of(golden, tmp_path)
    items = items_of(processor, case_of(golden, "one image"))
    text = f"<|endoftext|>{processor.chat_marker('image', 0)}<|endoftext|>"
    (placed,) = processor.expand_text(prompt_text(text, tokenizer), items).media
    assert placed.spans == ((1, 6),)


def test_expanded_ids_need_a_picture_each(tmp_path: Path) -> None:
    golden = media_golden(NAME)
    processor, _ = processor_of(golden, tmp_path)
    with pytest.raises(InvalidRequest, match="0 places for image items, and 1 are given"):
        processor.expand_ids([3, 4, 5], items_of(processor, case_of(golden, "one image")))


def test_embeddings_have_rows_that_begin_and_end_a_picture(tmp_path: Path) -> None:
    processor, _ = processor_of(media_golden(NAME), tmp_path)
    assert processor.accept(Embeddings("image", (np.zeros((6, 64), np.float32),), {}))[0].num_features == 6
    with pytest.raises(InvalidRequest, match="have 4 rows; the items need 6"):
        processor.accept(Embeddings("image", (np.zeros((4, 64), np.float32),), {}))


def test_chatglm_without_pictures_has_no_processor(tmp_path: Path) -> None:
    write_files(read_golden("ChatGLMModel"), tmp_path)
    _, tokenizer = processor_of(media_golden(NAME), tmp_path / "vision")
    assert load_processor(tmp_path, tokenizer) is None
