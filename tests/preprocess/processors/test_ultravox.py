"""Ultravox's processor makes what its golden says, and cuts long clips into windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from forebay.errors import InvalidRequest
from preprocess.media.decoded import Audio, Embeddings
from preprocess.processors.processor import ProcessorFiles
from preprocess.processors.ultravox import UltravoxProcessor
from tests.golden.media_cases import (
    check_ids_expand_as_text,
    check_pixels,
    encode_case,
    items_of,
    media_golden,
    processor_of,
)
from tests.preprocess.processors.byte_tokenizer import chat_prompt, plain_prompt, text_tokenizer
from tests.preprocess.processors.test_mel import tone

GOLDEN = media_golden("UltravoxModel")
CONFIG: dict[str, Any] = {
    "stack_factor": 4, "text_config": {"hidden_size": 8}, "audio_config": {"num_mel_bins": 16, "max_source_positions": 20},
}  # fmt: skip
BOS, END = 0, 1


def processor(*controls: str, bos: str | None = "<s>") -> UltravoxProcessor:
    tokenizer = text_tokenizer("<s>", "<e>", *controls, bos=bos)
    tokenizer.named_tokens = {"eos_token": "<e>"}
    return UltravoxProcessor(ProcessorFiles(CONFIG, {}, {}, tokenizer))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_goldens(case: dict[str, Any], tmp_path: Path) -> None:
    ours, tokenizer = processor_of(GOLDEN, tmp_path)
    items = items_of(ours, case)
    if "audio_values" in case.get("processor", {}):
        check_pixels(np.stack([item.tensors["audio_values"] for item in items]), case["processor"]["audio_values"])
        assert [item.num_features for item in items] == case["processor"]["audio_token_len"]
    assert encode_case(ours, tokenizer, case).token_ids == case["input_ids"]


@pytest.mark.parametrize("name", ["one clip of 1 s", "two clips of one length"])
def test_ids_expand_as_text(name: str, tmp_path: Path) -> None:
    prompt = {case["name"]: case for case in GOLDEN["cases"]}[name]["prompt"]
    assert prompt.startswith("<|begin_of_text|>")
    golden = GOLDEN | {"files": GOLDEN["files"] | {"tokenizer.json": _without_bos(GOLDEN["files"]["tokenizer.json"])}}
    check_ids_expand_as_text(golden, name, tmp_path)


def _without_bos(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The golden's tokenizer puts an <s> in front, which its prompts spell already."""
    return tokenizer | {"post_processor": None}


@pytest.mark.parametrize("num_samples", [201, 3200, 6400, 6401, 9601])
def test_windows_have_tokens_of_their_own(num_samples: int) -> None:
    item = processor().prepare(Audio(tone(num_samples), 16000), 1)
    padded = np.pad(tone(num_samples), (0, -num_samples % 160))
    wanted = WhisperFeatureExtractor(feature_size=16)(
        padded, sampling_rate=16000, padding="longest", truncation=False, return_tensors="np"
    )["input_features"][0]
    np.testing.assert_allclose(item.tensors["audio_values"], wanted, atol=5e-4)
    windows = np.arange(wanted.shape[1]) // 40  # of 40 frames
    assert item.num_features == sum(-(-np.count_nonzero(windows == window) // 8) for window in set(windows))


def test_a_clip_that_is_too_short_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="a clip of 160 samples is too short: it needs 161"):
        processor().prepare(Audio(tone(160), 16000), 1)
    assert processor().prepare(Audio(tone(161), 16000), 1).num_features == 1


def test_a_marker_that_is_no_token_splits_the_text_and_features_stand_at_ends_of_text() -> None:
    ours = processor()
    clips = [ours.prepare(Audio(tone(length), 16000), 2) for length in (1600, 3200)]
    tokenizer = text_tokenizer("<s>", "<e>", bos="<s>")
    encoded = ours.expand_text(plain_prompt(tokenizer, "a<|audio|>b<|audio|>"), clips)
    a, b = tokenizer.encode("ab", add_special_tokens=False)
    assert encoded.token_ids == [a, END, END, b, END, END, END]
    assert [placed.spans for placed in encoded.media] == [((1, 2),), ((4, 3),)]
    with pytest.raises(InvalidRequest, match="2 places for audio items, and 1 are given"):
        ours.expand_text(plain_prompt(tokenizer, "<|audio|><|audio|>"), clips[:1])


def test_a_user_cannot_spell_a_place_for_a_clip_in_a_chat() -> None:
    ours, tokenizer = processor("<|audio|>"), text_tokenizer("<s>", "<e>", "<|audio|>")
    (clip,) = ours.accept(Embeddings("audio", (np.zeros((1, 2, 8), np.float32),), {}))
    encoded = ours.expand_text(chat_prompt(tokenizer, "<s>" + ours.chat_marker("audio", 0) + "{}", "<|audio|>"), [clip])
    assert encoded.token_ids[:4] == [BOS, 2, 2, encoded.token_ids[3]]
    assert encoded.token_ids.count(2) == 2
