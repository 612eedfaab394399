"""Qwen2-Audio generates what transformers generates from the same clips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from preprocess.media.decoded import Audio
from tests.gpu_executor.models.media_cases.qwen2_audio import QWEN2_AUDIO
from tests.gpu_executor.models.media_checkpoints import check_tokens, generate, prompt_text, reference_tokens
from tests.preprocess.processors.test_mel import tone

# In samples: whole frames, an odd number of them, a last frame that is not full, all that fits, more than fits.
CLIPS = [[16000], [4960], [11111], [31900, 32000], [40000], []]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    folder = tmp_path_factory.mktemp("qwen2-audio")
    yield folder, QWEN2_AUDIO.write(folder)


def test_clips_of_every_length(written: tuple[Path, Any]) -> None:
    folder, model = written
    ours, tokenizer = QWEN2_AUDIO.processor(folder)
    theirs = AutoProcessor.from_pretrained(folder)
    prompts, wanted = [], []
    for lengths in CLIPS:
        clips = [tone(length) for length in lengths]
        text = "".join(f"{i}<|audio_bos|><|AUDIO|><|audio_eos|>" for i in range(len(clips))) + "what?"
        inputs = dict(theirs(text=text, audio=clips or None, sampling_rate=16000, return_tensors="pt"))
        items = [ours.prepare(Audio(clip, 16000), len(clips)) for clip in clips]
        prompts.append(ours.expand_text(prompt_text(text, tokenizer), items))
        assert prompts[-1].token_ids == inputs["input_ids"][0].tolist()
        wanted.append(reference_tokens(model, inputs))
    check_tokens(generate(folder, prompts), wanted)
    check_tokens(generate(folder, prompts, max_num_batched_tokens=11, block_size=4), wanted)


def test_names_of_transformers_5_before_it_went_back(written: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = written
    QWEN2_AUDIO.write_files(tmp_path)
    renamed = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        inner = name.replace("language_model.model.", "model.language_model.")
        inner = inner.replace("language_model.lm_head.", "lm_head.")
        renamed[inner if inner != name else f"model.{name}"] = tensor
    assert {name.split(".")[1] for name in renamed} == {
        "language_model",
        "audio_tower",
        "multi_modal_projector",
        "weight",
    }
    save_file(renamed, tmp_path / "model.safetensors")
    ours, tokenizer = QWEN2_AUDIO.processor(folder)
    prompt = ours.expand_text(prompt_text("<|AUDIO|>", tokenizer), [ours.prepare(Audio(tone(9000), 16000), 1)])
    assert generate(tmp_path, [prompt]) == generate(folder, [prompt])


def test_features_do_not_depend_on_other_clips(written: tuple[Path, Any]) -> None:
    folder, _ = written
    ours, tokenizer = QWEN2_AUDIO.processor(folder)
    prompts = [
        ours.expand_text(prompt_text("<|AUDIO|>", tokenizer), [ours.prepare(Audio(tone(length), 16000), 1)])
        for length in (9000, 16000)
    ]
    alone = generate(folder, prompts[:1]) + generate(folder, prompts[1:])
    for together, (ids, logprobs) in zip(generate(folder, prompts), alone, strict=True):
        assert together == (ids, pytest.approx(logprobs, abs=1e-4))
