"""Pictures of Phi-3-vision become the reference's crops, and text between them its pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImages

torch = pytest.importorskip("torch", reason="torch is not installed: the tower makes the whole picture")

from forebay.errors import InvalidRequest  # noqa: E402
from preprocess.media.decoded import Embeddings, Image  # noqa: E402
from preprocess.media_item import MediaItem  # noqa: E402
from preprocess.processors.phi3v import num_rows, whole_crops  # noqa: E402
from tests.golden.media_cases import (  # noqa: E402
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

NAMES = ("Phi3VForCausalLM", "Phi3VForCausalLM-embed")
CASES = [(name, case) for name in NAMES for case in media_golden(name)["cases"]]
SIDE = 336


def crops_of(item: MediaItem) -> np.ndarray:
    """The whole picture and its crops (3, 3, 336, 336), as the reference has them: of two crops at most, or zeros."""
    picture = normalized_pixels(item)
    whole = torch.nn.functional.interpolate(torch.from_numpy(picture)[None], size=(SIDE, SIDE), mode="bicubic").numpy()
    rows, cols = picture.shape[1] // SIDE, picture.shape[2] // SIDE
    crops = picture.reshape(3, rows, SIDE, cols, SIDE).transpose(1, 3, 0, 2, 4).reshape(-1, 3, SIDE, SIDE)
    return np.concatenate([whole, crops, np.zeros((2 - len(crops), 3, SIDE, SIDE))])


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda value: value if isinstance(value, str) else value["name"])
def test_prompts_and_pixels_are_the_references(name: str, case: dict[str, Any], tmp_path: Path) -> None:
    processor, tokenizer = processor_of(media_golden(name), tmp_path)
    assert encode_case(processor, tokenizer, case).token_ids == case["input_ids"]
    if case.get("processor"):
        items = items_of(processor, case)
        assert [list(item.tensors["pixels"].shape[1:]) for item in items] == case["processor"]["image_sizes"]
        check_pixels(np.stack([crops_of(item) for item in items]), case["processor"]["pixel_values"])


@pytest.mark.parametrize(("name", "case"), [(NAMES[0], "two images"), (NAMES[1], "image")])
def test_ids_are_expanded_as_text_is(name: str, case: str, tmp_path: Path) -> None:
    check_ids_expand_as_text(media_golden(name), case, tmp_path)


def test_markers_name_their_pictures_in_any_order(tmp_path: Path) -> None:
    golden = media_golden("Phi3VForCausalLM")
    processor, tokenizer = processor_of(golden, tmp_path)
    items = items_of(processor, case_of(golden, "two images"))
    encoded = processor.expand_text(prompt_text("a<|image_2|>b<|image_1|>", tokenizer), items)
    assert [placed.item for placed in encoded.media] == [items[1], items[0]]
    assert encoded.token_ids[-1] == 1  # the last piece of text is empty, and begins with <s>


@pytest.mark.parametrize("text", ["no marker", "<|image_2|>", "<|image_1|><|image_2|>"])
def test_markers_that_number_other_pictures_are_refused(text: str, tmp_path: Path) -> None:
    golden = media_golden("Phi3VForCausalLM")
    processor, tokenizer = processor_of(golden, tmp_path)
    items = items_of(processor, case_of(golden, "one image"))
    with pytest.raises(InvalidRequest, match="1 image items are given"):
        processor.expand_text(prompt_text(text, tokenizer), items)


@pytest.mark.parametrize(
    ("size", "most", "wanted"),
    [
        ((1000, 500), 16, (1680, 1008)),
        ((500, 1000), 16, (1008, 1680)),
        ((336, 336), 4, (672, 672)),
        ((40, 30), 1, (336, 336)),
    ],
)
def test_crops_are_as_many_as_there_may_be(size: tuple[int, int], most: int, wanted: tuple[int, int]) -> None:
    assert whole_crops(PilImages.new("RGB", size), most).size == wanted


def test_a_picture_that_leaves_no_row_is_refused(tmp_path: Path) -> None:
    processor, _ = processor_of(media_golden("Phi3VForCausalLM"), tmp_path)
    with pytest.raises(InvalidRequest, match="too narrow"):
        processor.prepare(Image(PilImages.new("RGB", (3000, 1))), 1)


def test_embeddings_that_no_picture_gives_are_refused(tmp_path: Path) -> None:
    processor, _ = processor_of(media_golden("Phi3VForCausalLM"), tmp_path)
    assert processor.accept(Embeddings("image", (np.zeros((num_rows(1, 2), 64), np.float32),), {}))
    with pytest.raises(InvalidRequest, match="312 rows"):
        processor.accept(Embeddings("image", (np.zeros((312, 64), np.float32),), {}))
