"""Which resolution suits a picture, and which patches are kept, is what LLaVA-NeXT's own code says."""

from __future__ import annotations

import pytest
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from preprocess.processors.anyres import AnyRes

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
WIDE = tuple((height, width) for height in range(384, 2305, 384) for width in range(384, 2305, 384))
SIZES = [
    (640, 480),
    (480, 640),
    (1, 1),
    (4000, 30),
    (30, 4000),
    (5000, 1),
    (337, 335),
    (1920, 1080),
    (999, 1000),
    (3000, 3000),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tokens_of_llava_next(size: tuple[int, int]) -> None:
    width, height = size
    anyres = AnyRes(PINPOINTS, 336, 24)
    tall, wide = anyres.best(width, height)
    assert (tall, wide) == select_best_resolution((height, width), PINPOINTS)
    wanted = LlavaNextProcessor._get_unpadded_features(None, height, width, 24, 24, tall // 336, wide // 336)
    assert anyres.layout(width, height).num_rows == sum(wanted)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tokens_of_llava_onevision(size: tuple[int, int]) -> None:
    class Released:
        vision_aspect_ratio = "anyres_max_9"

    width, height = size
    anyres = AnyRes(WIDE, 384, 27, max_tiles=9)
    tall, wide = anyres.best(width, height)
    wanted = LlavaOnevisionProcessor._get_unpadded_features(Released(), height, width, 27, 27, tall // 384, wide // 384)
    layout = anyres.layout(width, height)
    assert layout.num_rows == sum(wanted)
    assert (layout.bottom - layout.top, layout.right - layout.left) >= (layout.rows, layout.columns)
