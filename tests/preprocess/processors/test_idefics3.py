"""Idefics3's processor cuts the tiles that transformers' cuts, at the sizes of the released checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImages
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from forebay.errors import InvalidRequest
from preprocess.media.decoded import Audio, Embeddings, Image
from preprocess.processors.idefics3 import Idefics3Processor
from preprocess.processors.processor import ProcessorFiles
from tests.golden.media_cases import normalized_pixels
from tests.preprocess.processors.byte_tokenizer import chat_prompt, plain_prompt, text_tokenizer

CONTROLS = ("<image>", "<fake_token_around_image>", "<global-img>")
IMAGE, FAKE = 0, 1
TOKENIZER = text_tokenizer(*CONTROLS)
CONFIG = {
    "image_token_id": IMAGE,
    "vision_config": {"image_size": 364, "patch_size": 14},
    "text_config": {"hidden_size": 8},
}
HUB = {
    "size": {"longest_edge": 1456},
    "max_image_size": {"longest_edge": 364},
    "do_image_splitting": True,
    "resample": 1,
}
SMALL = {"size": {"longest_edge": 80}, "max_image_size": {"longest_edge": 28}}


def processor(settings: dict[str, Any] = SMALL, **files: Any) -> Idefics3Processor:
    return Idefics3Processor(ProcessorFiles(CONFIG, settings, files.pop("processor", {}), TOKENIZER))


def picture(width: int, height: int) -> Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return Image(PilImages.fromarray(pixels))


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (HUB, [(640, 427), (30, 90)]),
        ({}, [(100, 100)]),
        (SMALL, [(80, 60), (9, 300), (300, 1), (28, 28), (57, 56)]),
        (SMALL | {"do_resize": False}, [(20, 28), (57, 29), (28, 57)]),
        (SMALL | {"size": {"height": 28, "width": 29}}, [(50, 50)]),
        (SMALL | {"do_image_splitting": False}, [(57, 20)]),
        (SMALL | {"resample": 3, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}, [(57, 20)]),
    ],
    ids=["hub", "no-file", "small", "no-resize", "fixed", "no-splitting", "other-numbers"],
)
def test_tiles_are_those_of_transformers(settings: dict[str, Any], sizes: list[tuple[int, int]]) -> None:
    reference = Idefics3ImageProcessorPil(**settings, return_row_col_info=True)
    for size in sizes:
        wanted = reference(picture(*size).pixels, return_tensors="np")
        item = processor(settings).prepare(picture(*size), 1)
        np.testing.assert_allclose(normalized_pixels(item), wanted["pixel_values"][0], atol=1e-6)
        assert item.facts == (wanted["rows"][0][0], wanted["cols"][0][0])
        assert wanted["pixel_attention_mask"].all()


def test_settings_may_lie_in_a_section() -> None:
    nested = processor({}, processor={"image_processor": SMALL, "image_seq_len": 169})
    assert nested.prepare(picture(80, 60), 1).facts == (3, 3)


def test_a_picture_in_tiles_becomes_rows_with_tags() -> None:
    made = processor()
    item = made.prepare(picture(56, 28), 1)
    assert (item.facts, item.num_features) == ((2, 3), 7)
    encoded = made.expand_text(plain_prompt(TOKENIZER, "a<image>b"), [item])
    text = TOKENIZER.decode(encoded.token_ids, skip_special_tokens=False)
    tags = [[f"{CONTROLS[1]}<row_{row}_col_{column}><image>" for column in (1, 2, 3)] for row in (1, 2)]
    whole = f"\n{CONTROLS[1]}<global-img><image>{CONTROLS[1]}"
    assert text == "a" + "".join("".join(row) + "\n" for row in tags) + whole + "b"
    (placed,) = encoded.media
    assert [length for _, length in placed.spans] == [1] * 7
    assert all(encoded.token_ids[start] == IMAGE for start, _ in placed.spans)
    by_ids = made.expand_ids(TOKENIZER.encode("a<image>b", add_special_tokens=True), [item])
    assert by_ids.token_ids == made.expand_ids(encoded.token_ids, [item]).token_ids == encoded.token_ids


def test_a_user_cannot_spell_a_place_for_a_picture_in_a_chat() -> None:
    made = processor()
    item = made.prepare(picture(28, 28), 1)
    encoded = made.expand_text(chat_prompt(TOKENIZER, made.chat_marker("image", 0) + "{}", "<image>"), [item])
    typed = TOKENIZER.encode_user_text("<image>", add_special_tokens=False)
    assert encoded.token_ids[-len(typed) - 1 :] == [FAKE, *typed]
    assert encoded.token_ids.count(IMAGE) == item.num_features


def test_embeddings_are_of_one_tile() -> None:
    made = processor(HUB)
    (item,) = made.accept(Embeddings("image", (np.zeros((1, 169, 8), np.float32),), {}))
    assert (item.facts, item.num_features) == ((0, 0), 169)
    with pytest.raises(InvalidRequest, match="have 338 rows; a picture in one tile has 169"):
        made.accept(Embeddings("image", (np.zeros((338, 8), np.float32),), {}))


def test_other_media_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="takes no audio items"):
        processor().prepare(Audio(np.zeros(3, np.float32), 16000), 1)
    with pytest.raises(InvalidRequest, match="takes no video items"):
        processor().accept(Embeddings("video", (np.zeros((3, 8), np.float32),), {}))
