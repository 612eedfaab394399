"""BLIP-2's processor squeezes pictures as transformers' does, and puts them in front."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from forebay.errors import CheckpointError, InvalidRequest
from preprocess.media.decoded import Audio, Embeddings
from preprocess.processors.blip2 import Blip2Processor
from preprocess.processors.processor import ProcessorFiles
from tests.golden.media_cases import normalized_pixels
from tests.preprocess.processors.byte_tokenizer import plain_prompt, text_tokenizer
from tests.preprocess.processors.test_idefics3 import picture

CONFIG: dict[str, Any] = {"num_query_tokens": 2, "vision_config": {"image_size": 28}, "text_config": {"hidden_size": 8}}
SIZE = {"size": {"height": 28, "width": 28}}
END = 0


def processor(*controls: str, settings: dict[str, Any] = SIZE, **config: Any) -> Blip2Processor:
    tokenizer = text_tokenizer("</s>", *controls, bos="</s>")
    tokenizer.named_tokens = {"eos_token": "</s>"}
    return Blip2Processor(ProcessorFiles(CONFIG | config, settings, {}, tokenizer))


@pytest.mark.parametrize("size", [(640, 427), (9, 33)], ids=str)
def test_pixels_are_those_of_transformers(size: tuple[int, int]) -> None:
    wanted = BlipImageProcessorPil(**SIZE)(picture(*size).pixels, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(normalized_pixels(processor().prepare(picture(*size), 1)), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("controls", "config", "token_id"),
    [(("<image>",), {}, 1), ((), {"image_token_index": 7}, 7), ((), {"image_token_index": 50265}, END), ((), {}, END)],
    ids=["token", "config", "beyond-the-vocabulary", "older-files"],
)
def test_features_come_before_what_the_tokenizer_puts_in_front(
    controls: tuple[str, ...], config: dict[str, Any], token_id: int
) -> None:
    made = processor(*controls, **config)
    item = made.prepare(picture(20, 20), 1)
    tokenizer = text_tokenizer("</s>", *controls, bos="</s>")
    ids = tokenizer.encode("ab", add_special_tokens=True)
    encoded = made.expand_text(plain_prompt(tokenizer, "ab"), [item])
    assert encoded.token_ids == [token_id, token_id, *ids]
    assert [placed.spans for placed in encoded.media] == [((0, 2),)]
    assert made.expand_ids(ids, [item]).token_ids == encoded.token_ids
    assert made.expand_text(plain_prompt(tokenizer, "ab"), []).token_ids == ids


def test_ids_that_are_expanded_already_stay_as_they_are() -> None:
    made = processor("<image>")
    item = made.prepare(picture(20, 20), 1)
    assert made.expand_ids([1, 1, 0, 9], [item]).token_ids == [1, 1, 0, 9]


def test_a_prompt_takes_one_picture() -> None:
    made = processor("<image>")
    item = made.prepare(picture(20, 20), 1)
    with pytest.raises(InvalidRequest, match="comes with 2 pictures; this model takes 1"):
        made.expand_ids([9], [item, item])


def test_embeddings_have_a_row_for_each_query() -> None:
    (item,) = processor().accept(Embeddings("image", (np.zeros((1, 2, 8), np.float32),), {}))
    assert item.num_features == 2
    with pytest.raises(InvalidRequest, match="have 3 rows; a picture has 2"):
        processor().accept(Embeddings("image", (np.zeros((3, 8), np.float32),), {}))
    with pytest.raises(InvalidRequest, match="takes no audio items"):
        processor().prepare(Audio(np.zeros(3, np.float32), 16000), 1)


def test_pictures_that_the_tower_could_not_take_are_a_checkpoint_error() -> None:
    with pytest.raises(CheckpointError, match=r"size of preprocessor_config\.json is .*28 x 28"):
        processor(settings={})
