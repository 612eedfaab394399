"""Aria's processor makes transformers' square, but for patches that are all padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil

from forebay.errors import CheckpointError, InvalidRequest
from preprocess.media.decoded import Audio, Embeddings
from preprocess.processors.aria import AriaProcessor
from preprocess.processors.processor import ProcessorFiles
from tests.golden.media_cases import normalized_pixels
from tests.preprocess.processors.byte_tokenizer import plain_prompt, text_tokenizer
from tests.preprocess.processors.test_idefics3 import picture

TOKENIZER = text_tokenizer("<|img|>", "<fim_prefix>", "<fim_suffix>")
CONFIG = {"image_token_index": 0, "vision_config": {"patch_size": 14}, "text_config": {"hidden_size": 8}}


def processor(settings: dict[str, Any] | None = None, own: dict[str, Any] | None = None) -> AriaProcessor:
    return AriaProcessor(ProcessorFiles(CONFIG, settings or {}, own or {}, TOKENIZER))


@pytest.mark.parametrize(
    "settings", [{}, {"max_image_size": 490, "split_image": True, "min_image_size": 100}], ids=["hub", "other"]
)
@pytest.mark.parametrize("size", [(640, 427), (30, 90), (980, 980), (2000, 11)], ids=str)
def test_pixels_are_those_of_transformers_without_padding(settings: dict[str, Any], size: tuple[int, int]) -> None:
    """AriaProcessor asks its image processor for 980 pixels and one crop, whatever the file says."""
    reference = AriaImageProcessorPil(**settings)
    wanted = reference(picture(*size).pixels, max_image_size=980, split_image=False, return_tensors="np")
    item = processor(settings).prepare(picture(*size), 1)
    pixels = normalized_pixels(item)[0]
    height, width = pixels.shape[1:]
    np.testing.assert_allclose(pixels, wanted["pixel_values"][0, :, :height, :width], atol=1e-6)
    mask = wanted["pixel_mask"][0]
    seen = mask.reshape(70, 14, 70, 14).any((1, 3))
    assert seen[: height // 14, : width // 14].all()
    assert seen.sum() == height // 14 * (width // 14)
    assert (item.num_features, item.tensors["max_image_size"].tolist()) == (256, [980])


def test_the_marker_becomes_a_run() -> None:
    made = processor(own={"size_conversion": {"490": 2, "980": 3}})
    item = made.prepare(picture(20, 20), 1)
    encoded = made.expand_text(plain_prompt(TOKENIZER, made.chat_marker("image", 0)), [item])
    assert encoded.token_ids == [1, 0, 0, 0, 2]
    assert made.expand_ids([1, 0, 2], [item]).token_ids == [1, 0, 0, 0, 2]


def test_embeddings_are_of_whole_squares() -> None:
    (item,) = processor().accept(Embeddings("image", (np.zeros((1, 512, 8), np.float32),), {}))
    assert item.num_features == 512  # of a picture that was split
    with pytest.raises(InvalidRequest, match="have 100 rows; a picture has 256"):
        processor().accept(Embeddings("image", (np.zeros((100, 8), np.float32),), {}))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="takes no audio items"):
        processor().prepare(Audio(np.zeros(3, np.float32), 16000), 1)
    with pytest.raises(CheckpointError, match="980 of size_conversion is 0"):
        processor(own={"size_conversion": {"980": 0}})
