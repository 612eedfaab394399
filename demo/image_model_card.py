"""Owns the model card of the image demo's model: how often it is right about pictures it never saw."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from picture_chats import DESCRIBE, Turn, conversation, describe
from pictures import NEVER_TOGETHER, Scene, unseen_scenes
from PIL import Image
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

CARD = """---
language: en
library_name: transformers
pipeline_tag: image-text-to-text
---

# Forebay image demo model

A very small vision-language model that lets Forebay be tried with pictures without downloading anything. It tells which
coloured shapes a picture shows: one to three circles, squares, triangles and stars, in eight colours. It knows nothing else.

- {num_parameters:,} parameters, stored in bfloat16. Llava's shape: a SigLIP tower of 64 patches, two linears, and a Qwen2
  decoder whose head is its embedding. Context of 1024 tokens.
- Byte-level BPE of 384 tokens, built as Qwen2's; any text in Unicode's composed form (NFC) round-trips. ChatML template with
  the pictures of a message before its text; `<|im_end|>` ends an answer.

It answers "What is in the picture?" with the shapes from left to right, how many shapes there are, what colour the star is,
which shape is red, and what is on the left or on the right.

## Training

Made by [`demo/train_image_model.py`](../train_image_model.py), seed {seed}, Python {python}, from pictures that
[`demo/pictures.py`](../pictures.py) draws; none is seen twice. No picture of the training has a red circle and a blue square
together.

| | |
|---|---|
| pictures for the tower alone: what each patch shows | {tower_pictures:,} |
| pictures for the whole, questions | {pictures:,}, {questions:,} |
| time, CPU time, threads | {minutes:.0f} minutes, {cpu_minutes:.0f} minutes, {threads} |

## Right answers

Greedy, from the weights in this folder, about pictures that training did not draw, {num_pictures} for each row; an answer is
right if it is the expected one, letter for letter.

| | |
|---|---|
{rows}

## Licence

Pictures, questions and weights are this repository's, under its licence.
"""


def held_out_accuracy(folder: Path, num_pictures: int) -> dict[str, float]:
    """Which share of answers is exactly right, by what was asked: greedy, from the weights in a folder."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    rng = random.Random("questions")
    scenes = list(islice(unseen_scenes("accuracy"), num_pictures))
    together = list(islice(unseen_scenes("together", *NEVER_TOGETHER), num_pictures))
    exams = {
        "what is in a picture of one to three shapes": [
            (scene, Turn(rng.choice(DESCRIBE), describe(scene))) for scene in scenes
        ],
        "a question of any kind": [(scene, conversation(scene, rng, 1)[0]) for scene in scenes],
        "what is in a picture of a red circle and a blue square": [
            (scene, Turn(DESCRIBE[0], describe(scene))) for scene in together
        ],
    }
    return {
        name: sum(given == turn.answer for given, (_, turn) in zip(answers(model, tokenizer, exam), exam)) / len(exam)
        for name, exam in exams.items()
    }


@torch.no_grad()
def answers(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, exam: list[tuple[Scene, Turn]]
) -> Iterator[str]:
    """What the model says to each question about its scene, one after the other."""
    image_token, num_patches = "<image>", model.config.image_seq_length
    side = model.config.vision_config.image_size
    for scene, turn in exam:
        content = [{"type": "image"}, {"type": "text", "text": turn.question}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text.replace(image_token, image_token * num_patches), return_tensors="pt").input_ids
        image = scene.draw(4 * side).resize((side, side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, max_new_tokens=40, do_sample=False
        )
        yield tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def write_model_card(folder: Path, facts: dict[str, Any], accuracy: dict[str, float]) -> None:
    """README.md of a model folder, from what training and `held_out_accuracy` measured."""
    rows = "\n".join(f"| {name} | {share:.1%} |" for name, share in accuracy.items())
    text = CARD.format(**facts, rows=rows)
    (folder / "README.md").write_text(text, encoding="utf-8")
