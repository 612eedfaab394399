"""Llava's kind generates what transformers generates of the same pictures, whatever its tower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, PixtralImageProcessorPil

from preprocess.media.decoded import Image
from tests.gpu_executor.models.media_cases import llava as cases
from tests.gpu_executor.models.media_checkpoints import (
    MediaCheckpoint,
    check_tokens,
    generate,
    picture,
    prompt_text,
    reference_tokens,
)

SIZES = [[(40, 28)], [(17, 61), (90, 33)], []]


def reference_inputs(folder: Path, text: str, sizes: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    images = [picture(*size) for size in sizes]
    return dict(AutoProcessor.from_pretrained(folder)(images=images or None, text=text, return_tensors="pt"))


@pytest.mark.parametrize(
    "checkpoint", [cases.LLAVA_CLIP, cases.LLAVA_SIGLIP, cases.LLAVA_LAYERS], ids=lambda c: c.case.name
)
def test_pictures_of_one_size(checkpoint: MediaCheckpoint, tmp_path: Path) -> None:
    model = checkpoint.write(tmp_path)
    ours, tokenizer = checkpoint.processor(tmp_path)
    prompts, wanted = [], []
    for sizes in SIZES:
        text = "USER: " + "".join(f"{number}<image>\n" for number in range(len(sizes))) + "What is it? ASSISTANT:"
        inputs = reference_inputs(tmp_path, text, sizes)
        items = [ours.prepare(Image(picture(*size)), len(sizes)) for size in sizes]
        prompts.append(ours.expand_text(prompt_text(text, tokenizer), items))
        assert prompts[-1].token_ids == inputs["input_ids"][0].tolist()
        wanted.append(reference_tokens(model, inputs))
    check_tokens(generate(tmp_path, prompts), wanted)
    check_tokens(
        generate(tmp_path, prompts, max_num_batched_tokens=11, max_prefill_tokens_beside_decode=5, block_size=4), wanted
    )


def test_pictures_of_any_size(tmp_path: Path) -> None:
    """PixtralProcessor needs torchvision, which its image processor does not: here the test writes the rows of tokens."""
    checkpoint = cases.PIXTRAL_HF
    model = checkpoint.write(tmp_path)
    ours, tokenizer = checkpoint.processor(tmp_path)
    reference = PixtralImageProcessorPil.from_pretrained(tmp_path)
    prompts, wanted = [], []
    for sizes in SIZES:
        items = [ours.prepare(Image(picture(*size)), len(sizes)) for size in sizes]
        prompts.append(ours.expand_text(prompt_text("[INST]" + "[IMG]," * len(sizes) + "x", tokenizer), items))
        text, inputs = "[INST]", {}
        if sizes:
            inputs = dict(reference([picture(*size) for size in sizes], return_tensors="pt"))
            for height, width in inputs["image_sizes"].tolist():
                text += "[IMG_BREAK]".join(["[IMG]" * (width // 8)] * (height // 8)) + "[IMG_END],"
        assert prompts[-1].token_ids == tokenizer.encode(text + "x", add_special_tokens=True)
        inputs["input_ids"] = torch.tensor([prompts[-1].token_ids])
        wanted.append(reference_tokens(model, inputs))
    check_tokens(generate(tmp_path, prompts), wanted)
    check_tokens(
        generate(tmp_path, prompts, max_num_batched_tokens=11, max_prefill_tokens_beside_decode=5, block_size=4), wanted
    )
