"""Chameleon's processor makes what transformers' makes, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import ChameleonImageProcessorPil

from forebay.errors import CheckpointError, InvalidRequest
from preprocess.media.decoded import Embeddings, Image
from preprocess.processors.chameleon import ChameleonProcessor
from preprocess.processors.processor import ProcessorFiles
from preprocess.tokenizer import TextTokenizer
from tests.gpu_executor.models.media_checkpoints import picture
from tests.preprocess.processors.byte_tokenizer import byte_level, chat_prompt, plain_prompt

CONTROLS = ("<image>", "<racm3:break>", "<eoss>", "<sep>")
TOKENIZER = TextTokenizer(byte_level(*CONTROLS), named_tokens={"sep_token": "<sep>"}, chat_template=None)
CONFIG = {"hidden_size": 8, "vocabulary_map": {"<image>": 0}, "vq_config": {"channel_multiplier": [1, 1]}}
SMALL = {"size": {"shortest_edge": 4}, "crop_size": {"height": 4, "width": 4}}


def processor_of(**settings: object) -> ChameleonProcessor:
    return ChameleonProcessor(ProcessorFiles(CONFIG, settings, {}, TOKENIZER))


@pytest.mark.parametrize("size", [(512, 512), (700, 300), (33, 601)], ids=str)
@pytest.mark.parametrize("settings", [{}, {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 2}])
def test_pixels_are_those_of_transformers(size: tuple[int, int], settings: dict[str, object]) -> None:
    wanted = ChameleonImageProcessorPil(**settings)(picture(*size), return_tensors="np")["pixel_values"][0]
    item = processor_of(**settings).prepare(Image(picture(*size)), 1)
    levels = np.stack([of[channel] for of, channel in zip(item.tensors["levels"], item.tensors["pixels"], strict=True)])
    assert np.array_equal(levels, wanted)
    assert item.num_features == 256 * 256


def test_a_prompt_with_pictures_ends_with_the_separator() -> None:
    processor = processor_of(**SMALL)
    item = processor.prepare(Image(picture(9, 5)), 1)
    run = [1, 0, 0, 0, 0, 2]
    letter = TOKENIZER.encode("a", add_special_tokens=False)
    encoded = processor.expand_text(plain_prompt(TOKENIZER, "<image>a<image>"), [item, item])
    assert encoded.token_ids == [*run, *letter, *run, 3]
    assert [placed.spans for placed in encoded.media] == [((1, 4),), ((8, 4),)]
    assert processor.expand_ids([0, 9], [item]).token_ids == [*run, 9, 3]
    assert processor.expand_ids([*run, 9, 3], [item]).token_ids == [*run, 9, 3]
    assert processor.expand_text(plain_prompt(TOKENIZER, "a"), []).token_ids == letter
    assert processor.expand_ids([9], []).token_ids == [9]


def test_a_user_cannot_spell_a_picture_in_a_chat() -> None:
    processor = processor_of(**SMALL)
    item = processor.prepare(Image(picture(9, 5)), 1)
    encoded = processor.expand_text(chat_prompt(TOKENIZER, processor.chat_marker("image", 0) + "{}", "<image>"), [item])
    assert encoded.token_ids.count(0) == 4
    with pytest.raises(InvalidRequest, match="image"):
        processor.expand_text(chat_prompt(TOKENIZER, "{}", "<image>"), [item])


def test_embeddings_have_a_row_for_each_code() -> None:
    processor = processor_of(**SMALL)
    first, second = processor.accept(Embeddings("image", (np.zeros((2, 4, 8), np.float32),), {}))
    assert first.num_features == second.num_features == 4
    with pytest.raises(InvalidRequest, match="5 rows; the items need 4"):
        processor.accept(Embeddings("image", (np.zeros((5, 8), np.float32),), {}))


def test_a_vocabulary_without_marks_around_pictures_is_refused() -> None:
    tokenizer = TextTokenizer(byte_level("<image>"), named_tokens={}, chat_template=None)
    with pytest.raises(CheckpointError, match="<racm3:break>"):
        ChameleonProcessor(ProcessorFiles(CONFIG, {}, {}, tokenizer))
