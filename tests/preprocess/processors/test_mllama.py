"""Llama 3.2 Vision's processor makes what transformers' makes, without tiles that stand empty."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import MllamaImageProcessorPil

from forebay.errors import CheckpointError, InvalidRequest
from preprocess.media.decoded import Embeddings, Image
from preprocess.processors.mllama import MllamaProcessor
from preprocess.processors.processor import ProcessorFiles
from preprocess.tokenizer import TextTokenizer
from tests.gpu_executor.models.media_checkpoints import picture
from tests.preprocess.processors.byte_tokenizer import byte_level, chat_prompt, plain_prompt

TOKENIZER = TextTokenizer(byte_level("<|image|>", "<s>"), named_tokens={"bos_token": "<s>"}, chat_template=None)
TILE = 28
SETTINGS = {"size": {"height": TILE, "width": TILE}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
CONFIG = {"image_token_index": 0, "vision_config": {"image_size": TILE, "max_num_tiles": 4}}


def processor_of(settings: dict[str, object] = SETTINGS, config: dict[str, object] = CONFIG) -> MllamaProcessor:
    return MllamaProcessor(ProcessorFiles(config, settings, {}, TOKENIZER))


def letters(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


SIZES = [
    (28, 28),
    (29, 27),
    (5, 3),
    (200, 11),
    (11, 200),
    (56, 56),
    (57, 56),
    (90, 61),
    (61, 90),
    (300, 299),
    (1, 400),
    (30, 80),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("max_tiles", [1, 4, 6])
def test_tiles_are_those_of_transformers(size: tuple[int, int], max_tiles: int) -> None:
    settings = SETTINGS | {"max_image_tiles": max_tiles}
    config = CONFIG | {"vision_config": {"image_size": TILE, "max_num_tiles": max_tiles}}
    wanted = MllamaImageProcessorPil(**settings)(picture(*size), return_tensors="np")
    item = processor_of(settings, config).prepare(Image(picture(*size)), 1)
    pixels, scale = item.tensors["pixels"], item.tensors["normalization"]
    mean, std = scale[1:].reshape(2, 3, 1, 1)
    normalized = (pixels.astype(np.float32) * scale[0] - mean) / std
    num_tiles = int(wanted["aspect_ratio_mask"].sum())
    assert (
        len(pixels) == num_tiles and item.tensors["aspect_ratio_id"].tolist() == wanted["aspect_ratio_ids"][0].tolist()
    )
    np.testing.assert_allclose(normalized, wanted["pixel_values"][0, 0, :num_tiles], atol=1e-6)
    assert item.num_features == 1


def test_a_text_begins_behind_the_pictures_that_open_it() -> None:
    processor = processor_of()
    item = processor.prepare(Image(picture(9, 5)), 1)
    encoded = processor.expand_text(plain_prompt(TOKENIZER, "<|image|><|image|>a<|image|>"), [item] * 3)
    assert encoded.token_ids == [0, 0, 1, *letters("a"), 0]
    assert [placed.spans for placed in encoded.media] == [((0, 1),), ((1, 1),), ((4, 1),)]
    assert processor.expand_text(plain_prompt(TOKENIZER, "a<|image|>"), [item]).token_ids == [1, *letters("a"), 0]
    assert processor.expand_text(plain_prompt(TOKENIZER, "<s>a<|image|>"), [item]).token_ids == [1, *letters("a"), 0]
    assert processor.expand_text(plain_prompt(TOKENIZER, "a"), []).token_ids == letters("a")
    assert processor.expand_ids([1, 0, 9], [item]).media[0].spans == ((1, 1),)


def test_pictures_and_their_tokens_are_equally_many() -> None:
    processor = processor_of()
    item = processor.prepare(Image(picture(9, 5)), 1)
    with pytest.raises(InvalidRequest, match="has 1 tokens that stand for image features; its items have 2"):
        processor.expand_text(plain_prompt(TOKENIZER, "<|image|>a"), [item, item])
    with pytest.raises(InvalidRequest, match="has 2 tokens"):
        processor.expand_ids([0, 0], [item])


def test_a_user_cannot_spell_a_picture_in_a_chat() -> None:
    processor = processor_of()
    item = processor.prepare(Image(picture(9, 5)), 1)
    prompt = chat_prompt(TOKENIZER, "<s>" + processor.chat_marker("image", 0) + "{}", "<s><|image|>")
    typed = TOKENIZER.encode_user_text("<s><|image|>", add_special_tokens=False)
    assert 0 not in typed and processor.expand_text(prompt, [item]).token_ids == [1, 0, *typed]


def test_embeddings_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="takes no precomputed embeddings"):
        processor_of().accept(Embeddings("image", (np.zeros((20, 8), np.float32),), {}))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"do_pad": False}, "do_pad"),
        ({"size": {"height": 28, "width": 56}}, "equal height and width"),
        ({"max_image_tiles": 2}, "max_image_tiles of preprocessor_config.json is 2; it must be 4"),
        ({"size": {"height": 56, "width": 56}}, "it must be 28"),
    ],
    ids=["do_pad", "oblong", "tiles", "size"],
)
def test_settings_that_the_tower_cannot_read_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        processor_of(SETTINGS | settings)
