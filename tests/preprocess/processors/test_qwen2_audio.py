"""Qwen2-Audio's processor makes what transformers' makes, without its padding."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as PilImages
from transformers import WhisperFeatureExtractor

from forebay.errors import InvalidRequest
from preprocess.media.decoded import Audio, Embeddings, Image
from preprocess.processors.processor import ProcessorFiles
from preprocess.processors.qwen2_audio import Qwen2AudioProcessor
from tests.preprocess.processors.byte_tokenizer import chat_prompt, plain_prompt, text_tokenizer
from tests.preprocess.processors.test_mel import tone

TOKENIZER = text_tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
CONFIG = {"audio_token_index": 0, "text_config": {"model_type": "qwen2", "hidden_size": 8}}


@pytest.fixture(scope="module")
def processor() -> Qwen2AudioProcessor:
    return Qwen2AudioProcessor(ProcessorFiles(CONFIG, {"feature_size": 128}, {}, TOKENIZER))


@pytest.mark.parametrize("num_samples", [16000, 4960, 11111, 479900, 480000, 500000])
def test_frames_are_those_of_transformers_with_two_of_its_padding(
    processor: Qwen2AudioProcessor, num_samples: int
) -> None:
    reference = WhisperFeatureExtractor(feature_size=128)
    wanted = reference(tone(num_samples), sampling_rate=16000, return_attention_mask=True, return_tensors="np")
    item = processor.prepare(Audio(tone(num_samples), 16000), 1)
    num_frames = int(wanted["attention_mask"].sum())
    assert item.tensors["num_frames"].tolist() == [num_frames]
    frames = wanted["input_features"][0, :, : num_frames + 2]
    assert item.tensors["input_features"].shape == frames.shape
    np.testing.assert_allclose(item.tensors["input_features"], frames, atol=5e-4)
    assert item.num_features == (((num_frames - 1) // 2 + 1) - 2) // 2 + 1


def test_a_clip_that_is_too_short_is_refused(processor: Qwen2AudioProcessor) -> None:
    with pytest.raises(InvalidRequest, match="a clip of 320 samples is too short: it needs 321"):
        processor.prepare(Audio(tone(320), 16000), 1)
    assert processor.prepare(Audio(tone(321), 16000), 1).num_features == 1


def test_other_media_is_refused(processor: Qwen2AudioProcessor) -> None:
    with pytest.raises(InvalidRequest, match="takes no image items"):
        processor.prepare(Image(PilImages.new("RGB", (8, 8))), 1)
    with pytest.raises(InvalidRequest, match="takes no image items"):
        processor.accept(Embeddings("image", (np.zeros((3, 8), np.float32),), {}))


def test_embeddings_may_have_any_number_of_rows(processor: Qwen2AudioProcessor) -> None:
    first, second = processor.accept(Embeddings("audio", (np.zeros((3, 8)), np.ones((1, 8))), {}))
    encoded = processor.expand_text(plain_prompt(TOKENIZER, "<|AUDIO|><|AUDIO|>"), [first, second])
    assert [placed.spans for placed in encoded.media] == [((0, 3),), ((3, 1),)]
    assert processor.expand_ids([0, 9, 0], [first, second]).token_ids == [0, 0, 0, 9, 0]


def test_a_user_cannot_spell_a_place_for_a_clip_in_a_chat(processor: Qwen2AudioProcessor) -> None:
    clip = processor.prepare(Audio(tone(321), 16000), 1)
    prompt = chat_prompt(TOKENIZER, processor.chat_marker("audio", 0) + "{}", "<|AUDIO|>")
    encoded = processor.expand_text(prompt, [clip])
    assert encoded.token_ids.count(0) == 1
