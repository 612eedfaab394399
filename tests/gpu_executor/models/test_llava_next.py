"""LLaVA-NeXT's kind generates what transformers generates of the same pictures and videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaNextImageProcessorPil, LlavaOnevisionImageProcessorPil

from preprocess.media.decoded import Image, Video
from preprocess.media_item import MediaItem
from tests.gpu_executor.models.media_cases import llava_next as cases
from tests.gpu_executor.models.media_checkpoints import (
    MediaCheckpoint,
    check_tokens,
    generate,
    picture,
    prompt_text,
    reference_tokens,
)
from tests.gpu_executor.models.media_engine import embed, engine_of

PICTURES = [[(40, 28)], [(17, 61), (90, 20)], [(300, 200), (33, 33)], [(100, 3)], []]
CHUNKED = {"max_num_batched_tokens": 23, "max_prefill_tokens_beside_decode": 9, "block_size": 4}


def video(num_frames: int, size: tuple[int, int] = (28, 28)) -> Video:
    return Video(np.stack([np.asarray(picture(*size, seed=seed)) for seed in range(num_frames)]), 1.0)


def normalized(item: MediaItem) -> torch.Tensor:
    scale, *rest = item.tensors["normalization"]
    mean, deviation = np.reshape(rest, (2, -1, 1, 1))
    return torch.tensor((item.tensors["pixels"] * scale - mean) / deviation, dtype=torch.float32)


@pytest.mark.parametrize(
    ("checkpoint", "reference_class"),
    [
        (cases.LLAVA_NEXT, LlavaNextImageProcessorPil),
        (cases.LLAVA_NEXT_VIDEO, LlavaNextImageProcessorPil),
        (cases.LLAVA_ONEVISION, LlavaOnevisionImageProcessorPil),
    ],
    ids=lambda value: getattr(getattr(value, "case", None), "name", ""),
)
def test_pictures(checkpoint: MediaCheckpoint, reference_class: Any, tmp_path: Path) -> None:
    model = checkpoint.write(tmp_path)
    ours, tokenizer = checkpoint.processor(tmp_path)
    reference = reference_class.from_pretrained(tmp_path)
    prompts, wanted = [], []
    for sizes in PICTURES:
        images = [picture(*size) for size in sizes]
        items = [ours.prepare(Image(image), len(sizes)) for image in images]
        prompts.append(ours.expand_text(prompt_text("USER: " + "<image>\n" * len(sizes) + "x?", tokenizer), items))
        inputs = dict(reference(images, return_tensors="pt")) if images else {}
        for item, pixels in zip(items, inputs.get("pixel_values", []), strict=True):
            torch.testing.assert_close(normalized(item), pixels[: len(item.tensors["pixels"])], rtol=0, atol=2e-6)
            assert not pixels[len(item.tensors["pixels"]) :].any()  # padded to the batch
        wanted.append(reference_tokens(model, inputs | {"input_ids": torch.tensor([prompts[-1].token_ids])}))
    check_tokens(generate(tmp_path, prompts), wanted)
    check_tokens(generate(tmp_path, prompts, **CHUNKED), wanted)


@pytest.mark.parametrize(
    "checkpoint",
    [cases.LLAVA_NEXT_VIDEO, cases.LLAVA_NEXT_VIDEO_MAX, cases.LLAVA_NEXT_VIDEO_CONV, cases.LLAVA_ONEVISION],
    ids=lambda checkpoint: checkpoint.case.name,
)
def test_videos(checkpoint: MediaCheckpoint, tmp_path: Path) -> None:
    """Their processors need torchvision: here frames of the tower's own size make resizing of no account."""
    model = checkpoint.write(tmp_path)
    ours, tokenizer = checkpoint.processor(tmp_path)
    prompts, wanted = [], []
    for counts in ([1], [5], [2, 2]):
        items = [ours.prepare(video(count), len(counts)) for count in counts]
        prompts.append(ours.expand_text(prompt_text("USER: " + "<video>\n" * len(counts) + "x?", tokenizer), items))
        inputs = {
            "pixel_values_videos": torch.stack([normalized(item) for item in items]),
            "input_ids": torch.tensor([prompts[-1].token_ids]),
        }
        wanted.append(reference_tokens(model, inputs))
    check_tokens(generate(tmp_path, prompts), wanted)
    check_tokens(generate(tmp_path, prompts, **CHUNKED), wanted)


def test_pictures_and_videos_in_one_prompt(tmp_path: Path) -> None:
    checkpoint = cases.LLAVA_ONEVISION
    model = checkpoint.write(tmp_path)
    ours, tokenizer = checkpoint.processor(tmp_path)
    image = picture(50, 80)
    clip, still = ours.prepare(video(3), 1), ours.prepare(Image(image), 1)
    prompt = ours.expand_text(prompt_text("a<video>b<image>c", tokenizer), [still, clip])
    inputs = dict(LlavaOnevisionImageProcessorPil.from_pretrained(tmp_path)(image, return_tensors="pt"))
    inputs |= {"pixel_values_videos": normalized(clip)[None], "input_ids": torch.tensor([prompt.token_ids])}
    check_tokens(generate(tmp_path, [prompt]), [reference_tokens(model, inputs)])


def test_an_embedding_is_the_last_token_normalized(tmp_path: Path) -> None:
    """As E5-V (Jiang et al., 2024) asks for the one word that says what a picture or a sentence is."""
    checkpoint = cases.LLAVA_NEXT
    model = checkpoint.write(tmp_path)
    ours, tokenizer = checkpoint.processor(tmp_path)
    image = picture(90, 50)
    text = prompt_text("dogs\nin one word:", tokenizer)
    prompts = [ours.expand_text(text, [])]
    prompts.append(ours.expand_text(prompt_text("<image>\nin one word:", tokenizer), [ours.prepare(Image(image), 1)]))
    pixels = dict(LlavaNextImageProcessorPil.from_pretrained(tmp_path)(image, return_tensors="pt"))
    found = embed(engine_of(tmp_path, task="embed"), prompts)
    for prompt, media, embedding in zip(prompts, ({}, pixels), found, strict=True):
        with torch.inference_mode():
            hidden = model.model(input_ids=torch.tensor([prompt.token_ids]), **media).last_hidden_state[0, -1]
        np.testing.assert_allclose(embedding, torch.nn.functional.normalize(hidden, dim=0), atol=1e-5)
