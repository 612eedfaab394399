"""Idefics3 and Aria generate what transformers generates from the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from preprocess.media.decoded import Image
from tests.gpu_executor.models.media_cases.idefics3 import ARIA, IDEFICS3
from tests.gpu_executor.models.media_checkpoints import (
    MediaCheckpoint,
    check_tokens,
    generate,
    picture,
    prompt_text,
    reference_tokens,
)


def run(
    checkpoint: MediaCheckpoint, marker: str, sizes: list[list[tuple[int, int]]], folder: Path, **extras: Any
) -> None:
    """Prompts with pictures of these sizes give transformers' tokens, whole and in chunks."""
    model = checkpoint.write(folder)
    ours, tokenizer = checkpoint.processor(folder)
    theirs = AutoProcessor.from_pretrained(folder, **extras)
    prompts, wanted = [], []
    for of_prompt in sizes:
        images = [picture(*size) for size in of_prompt]
        text = "".join(f"{number}{marker}\n" for number in range(len(images))) + "What is it?"
        inputs = dict(theirs(images=images or None, text=text, return_tensors="pt"))
        items = [ours.prepare(Image(image), len(images)) for image in images]
        prompts.append(ours.expand_text(prompt_text(text, tokenizer), items))
        assert prompts[-1].token_ids == inputs["input_ids"][0].tolist()
        wanted.append(reference_tokens(model, inputs))
    check_tokens(generate(folder, prompts), wanted)
    check_tokens(generate(folder, prompts, max_num_batched_tokens=16, block_size=4), wanted)


def test_tiles_of_any_number(tmp_path: Path) -> None:
    run(IDEFICS3, "<image>", [[(40, 28)], [(17, 61), (200, 31)], [(30, 30)], []], tmp_path)


def test_a_picture_that_is_not_split(tmp_path: Path) -> None:
    keys = {"do_image_splitting": False, "do_pad": None}
    files = IDEFICS3.files | {"preprocessor_config.json": IDEFICS3.files["preprocessor_config.json"] | keys}
    run(MediaCheckpoint(IDEFICS3.case, files, IDEFICS3.tokens), "<image>", [[(40, 28)]], tmp_path)


def test_padding_of_a_square_need_not_be_there(tmp_path: Path) -> None:
    run(ARIA, "<|img|>", [[(40, 28)], [(300, 1000), (980, 500)], []], tmp_path, image_token="<|img|>")
