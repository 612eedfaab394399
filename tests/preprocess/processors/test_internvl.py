"""Pictures of InternVL, H2OVL and NVLM-D become the reference's tiles and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImages

from forebay.errors import InvalidRequest
from preprocess.media.decoded import Embeddings, Image
from preprocess.processors.tiles import grids, nearest_grid
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

NAMES = ("InternVLChatModel", "InternVLChatModel-qwen2", "H2OVLChatModel", "NVLM_D_Model")
CASES = [(name, case) for name in NAMES for case in media_golden(name)["cases"]]


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda value: value if isinstance(value, str) else value["name"])
def test_prompts_and_pixels_are_the_references(name: str, case: dict[str, Any], tmp_path: Path) -> None:
    processor, tokenizer = processor_of(media_golden(name), tmp_path)
    encoded = encode_case(processor, tokenizer, case)
    assert encoded.token_ids == case["input_ids"]
    wanted = case.get("processor")
    if wanted:
        items = items_of(processor, case)
        assert [len(item.tensors["pixels"]) for item in items] == wanted["num_patches"]
        check_pixels(np.concatenate([normalized_pixels(item) for item in items]), wanted["pixel_values"])


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_expanded_as_text_is(name: str, tmp_path: Path) -> None:
    check_ids_expand_as_text(media_golden(name), "two images", tmp_path)


def test_features_of_nvlm_stand_in_a_span_for_each_tile(tmp_path: Path) -> None:
    golden = media_golden("NVLM_D_Model")
    processor, tokenizer = processor_of(golden, tmp_path)
    (placed,) = encode_case(processor, tokenizer, case_of(golden, "one image")).media
    assert [length for _, length in placed.spans] == [9] * 7


def test_pictures_in_company_are_tiled_once(tmp_path: Path) -> None:
    processor, _ = processor_of(media_golden("H2OVLChatModel"), tmp_path)
    picture = Image(PilImages.new("RGB", (120, 40), "red"))
    alone, together = (processor.prepare(picture, count).tensors["pixels"] for count in (1, 2))
    assert len(together) == 4  # three tiles and the thumbnail
    assert len(alone) > len(together)


def test_a_picture_keeps_one_tile_where_tiling_is_off(tmp_path: Path) -> None:
    golden = media_golden("InternVLChatModel")
    golden["files"]["config.json"]["dynamic_image_size"] = False
    processor, _ = processor_of(golden, tmp_path)
    assert processor.prepare(Image(PilImages.new("L", (200, 30))), 1).tensors["pixels"].shape == (1, 3, 42, 42)


def test_the_larger_of_two_grids_as_near_takes_a_large_picture() -> None:
    assert nearest_grid((400, 400), grids(1, 6), 10) == (2, 2)
    assert nearest_grid((10, 10), grids(1, 6), 10) == (1, 1)


@pytest.mark.parametrize("shape", [(10, 64), (9, 63)], ids=["not whole tiles", "another width"])
def test_embeddings_of_another_shape_are_refused(shape: tuple[int, int], tmp_path: Path) -> None:
    processor, _ = processor_of(media_golden("InternVLChatModel"), tmp_path)
    with pytest.raises(InvalidRequest, match=r"image embeddings .* (9|64)"):
        processor.accept(Embeddings("image", (np.zeros(shape, np.float32),), {}))


def test_markers_and_pictures_must_be_as_many(tmp_path: Path) -> None:
    golden = media_golden("InternVLChatModel")
    processor, tokenizer = processor_of(golden, tmp_path)
    items = items_of(processor, case_of(golden, "square"))
    with pytest.raises(InvalidRequest, match="2 places"):
        processor.expand_text(prompt_text("<image><image>", tokenizer), items)
