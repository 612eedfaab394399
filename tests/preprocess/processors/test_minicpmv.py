"""Pictures of MiniCPM-V become the reference's slices, tags and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImages

from forebay.errors import InvalidRequest
from preprocess.media.decoded import Embeddings, Image
from preprocess.media_item import MediaItem
from preprocess.processors.minicpmv import Slicing
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

NAMES = ("MiniCPMV", "MiniCPMV-2.5")
CASES = [(name, case) for name in NAMES for case in media_golden(name)["cases"]]
PATCH = 14


def strips_of(item: MediaItem) -> list[np.ndarray]:
    """Slices as the reference has them: patches side by side, (3, 14, 14 n) each."""
    slices = [normalized_pixels(item)]
    if "slices" in item.tensors:
        slices += list(normalized_pixels(item, "slices"))
    strips = []
    for pixels in slices:
        channels, height, width = pixels.shape
        patches = pixels.reshape(channels, height // PATCH, PATCH, width // PATCH, PATCH).transpose(0, 2, 1, 3, 4)
        strips.append(patches.reshape(channels, PATCH, -1))
    return strips


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda value: value if isinstance(value, str) else value["name"])
def test_prompts_and_pixels_are_the_references(name: str, case: dict[str, Any], tmp_path: Path) -> None:
    processor, tokenizer = processor_of(media_golden(name), tmp_path)
    assert encode_case(processor, tokenizer, case).token_ids == case["input_ids"]
    if case.get("processor"):
        strips = [strip for item in items_of(processor, case) for strip in strips_of(item)]
        wanted = case["processor"]["pixel_values (strips, one per slice)"]
        for strip, one in zip(strips, wanted, strict=True):
            check_pixels(strip, one)


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_expanded_as_text_is(name: str, tmp_path: Path) -> None:
    check_ids_expand_as_text(media_golden(name), "two images", tmp_path)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((448, 448), None),
        ((449, 448), (2, 1)),
        ((448, 449), (1, 2)),
        ((1344, 448), (3, 1)),
        ((4000, 3000), (3, 3)),
        ((200, 3000), (1, 4)),
    ],
)
def test_a_grid_has_about_as_many_cells_as_slices_fit(size: tuple[int, int], grid: tuple[int, int] | None) -> None:
    assert Slicing(448, 14, 9).grid(size) == grid


def test_nothing_is_sliced_where_the_checkpoint_says_so(tmp_path: Path) -> None:
    golden = media_golden("MiniCPMV")
    golden["files"]["preprocessor_config.json"]["slice_mode"] = False
    processor, _ = processor_of(golden, tmp_path)
    item = processor.prepare(Image(PilImages.new("RGB", (300, 200))), 1)
    assert "slices" not in item.tensors
    assert item.num_features == 4


def test_a_folder_without_preprocessor_config_has_the_numbers_of_its_config(tmp_path: Path) -> None:
    golden = media_golden("MiniCPMV-2.5")
    del golden["files"]["preprocessor_config.json"]
    golden["files"]["config.json"] |= {"scale_resolution": 56, "version": None}
    processor, tokenizer = processor_of(golden, tmp_path)
    case = case_of(golden, "one image")
    assert encode_case(processor, tokenizer, case).token_ids == case["input_ids"]


@pytest.mark.parametrize(
    ("rows", "extras", "problem"),
    [
        (12, {}, "image_sizes, which is missing"),
        (11, {"image_sizes": np.array([[112, 70]])}, "11 rows; a picture of 112 x 70 has 12"),
        (12, {"image_sizes": np.array([[112, 70], [1, 1]])}, "2 sizes; there are 1"),
    ],
    ids=["no sizes", "too few rows", "too many sizes"],
)
def test_embeddings_without_their_sizes_are_refused(
    rows: int, extras: dict[str, np.ndarray], problem: str, tmp_path: Path
) -> None:
    processor, _ = processor_of(media_golden("MiniCPMV"), tmp_path)
    with pytest.raises(InvalidRequest, match=problem):
        processor.accept(Embeddings("image", (np.zeros((rows, 128), np.float32),), extras))


def test_pictures_are_numbered_within_their_prompt(tmp_path: Path) -> None:
    golden = media_golden("MiniCPMV")
    processor, tokenizer = processor_of(golden, tmp_path)
    items = items_of(processor, case_of(golden, "small image")) * 2
    text = "(<image>./</image>)(<image>./</image>)"
    token_ids = processor.expand_text(prompt_text(text, tokenizer), items).token_ids
    tagged = "<image_id>{}</image_id><image><unk><unk><unk><unk></image>"
    assert token_ids == tokenizer.encode(tagged.format(0) + tagged.format(1), add_special_tokens=True)
