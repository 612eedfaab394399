"""Fuyu's processor shrinks and pads pictures as transformers' does, and writes their rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

from forebay.errors import CheckpointError, InvalidRequest
from preprocess.media.decoded import Audio, Embeddings
from preprocess.processors.fuyu import FuyuProcessor
from preprocess.processors.processor import ProcessorFiles
from tests.golden.media_cases import normalized_pixels
from tests.preprocess.processors.byte_tokenizer import plain_prompt, text_tokenizer
from tests.preprocess.processors.test_idefics3 import picture

TOKENIZER = text_tokenizer("|SPEAKER|", "|NEWLINE|", "<s>", "<0x04>", bos="<s>")
SPEAKER, NEWLINE, START, ANSWER = range(4)
SMALL: dict[str, Any] = {"size": {"height": 36, "width": 48}, "patch_size": {"height": 6, "width": 6}}


def processor(settings: dict[str, Any] = SMALL) -> FuyuProcessor:
    return FuyuProcessor(ProcessorFiles({}, settings, {}, TOKENIZER))


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (2000, 333)), ({}, (31, 29)), (SMALL, (49, 3)), (SMALL, (48, 36)), (SMALL | {"do_resize": False}, (40, 30)),
        (SMALL | {"image_mean": [0.4, 0.5, 0.6], "image_std": 0.2, "resample": 3}, (100, 100)),
    ],
    ids=["hub-large", "hub-small", "shrunk", "whole", "no-resize", "other-numbers"],
)  # fmt: skip
def test_pixels_are_those_of_transformers(settings: dict[str, Any], size: tuple[int, int]) -> None:
    reference = FuyuImageProcessorPil(**settings)
    wanted = reference(picture(*size).pixels)
    patch = settings.get("patch_size", {"height": 30})["height"]
    height = -(-wanted["image_unpadded_heights"][0][0] // patch) * patch
    width = -(-wanted["image_unpadded_widths"][0][0] // patch) * patch
    item = processor(settings).prepare(picture(*size), 1)
    np.testing.assert_allclose(normalized_pixels(item), wanted["images"][0][0][:, :height, :width], atol=1e-6)
    assert item.facts == (height // patch, width // patch)


def test_text_and_ids_become_the_same_prompt() -> None:
    made = processor()
    item = made.prepare(picture(13, 7), 1)
    ab = TOKENIZER.encode("ab", add_special_tokens=False)
    wanted = [*[SPEAKER] * 3, NEWLINE, *[SPEAKER] * 3, NEWLINE, START, *ab, ANSWER]
    encoded = made.expand_text(plain_prompt(TOKENIZER, "ab"), [item])
    assert encoded.token_ids == wanted
    assert [placed.spans for placed in encoded.media] == [((0, 3), (4, 3))]
    for ids in (ab, [START, *ab], [*ab, ANSWER], wanted):
        found = made.expand_ids(ids, [item])
        assert (found.token_ids, found.media[0].spans) == (wanted, encoded.media[0].spans)


def test_text_alone_is_as_the_tokenizer_has_it() -> None:
    ids = TOKENIZER.encode("ab", add_special_tokens=True)
    assert ids[0] == START
    assert processor().expand_text(plain_prompt(TOKENIZER, "ab"), []).token_ids == ids
    assert processor().expand_ids(ids, []).token_ids == ids


def test_what_cannot_be_is_refused() -> None:
    made = processor()
    item = made.prepare(picture(13, 7), 1)
    with pytest.raises(InvalidRequest, match="comes with 2 pictures; this model takes 1"):
        made.expand_ids([9], [item, item])
    with pytest.raises(InvalidRequest, match="a picture of 5,000 x 1 is too narrow"):
        made.prepare(picture(5000, 1), 1)
    with pytest.raises(InvalidRequest, match="takes no audio items"):
        made.prepare(Audio(np.zeros(3, np.float32), 16000), 1)
    with pytest.raises(InvalidRequest, match="takes no precomputed embeddings"):
        made.accept(Embeddings("image", (np.zeros((3, 8), np.float32),), {}))
    with pytest.raises(CheckpointError, match="must be whole patches"):
        processor(SMALL | {"size": {"height": 35, "width": 48}})
