"""BLIP-2 generates what transformers generates from the same picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from forebay.errors import UnknownArchitecture
from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from preprocess.media.decoded import Image
from tests.gpu_executor.models.media_cases.blip2 import BLIP2
from tests.gpu_executor.models.media_checkpoints import NUM_TOKENS, check_tokens, generate, picture, prompt_text


@torch.inference_mode()
def greedy(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[list[int], list[float]]:
    """Tokens of transformers' model, each from the whole prompt: its generate() does not go on from a cache."""
    ids, rest = inputs["input_ids"], {"pixel_values": inputs["pixel_values"]}
    found, logprobs = [], []
    for _ in range(NUM_TOKENS):
        scores = model(input_ids=ids, attention_mask=torch.ones_like(ids), **rest).logits[0, -1].log_softmax(-1)
        found.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
        ids = torch.cat((ids, torch.tensor([[found[-1]]])), 1)
    return found, logprobs


def test_a_picture_comes_before_everything(tmp_path: Path) -> None:
    model = BLIP2.write(tmp_path)
    ours, tokenizer = BLIP2.processor(tmp_path)
    theirs = AutoProcessor.from_pretrained(tmp_path)
    prompts, wanted = [], []
    for size, text in (((40, 28), "Question: what? Answer:"), ((9, 33), "a photo of")):
        inputs = dict(theirs(images=picture(*size), text=text, return_tensors="pt"))
        item = ours.prepare(Image(picture(*size)), 1)
        prompts.append(ours.expand_text(prompt_text(text, tokenizer), [item]))
        assert prompts[-1].token_ids == inputs["input_ids"][0].tolist()
        wanted.append(greedy(model, inputs))
    check_tokens(generate(tmp_path, prompts), wanted)
    check_tokens(generate(tmp_path, prompts, max_num_batched_tokens=8, block_size=4), wanted)


def test_sizes_that_released_files_leave_out_are_those_of_opt() -> None:
    """Salesforce/blip2-opt-2.7b names neither its vocabulary nor its positions."""
    text = {
        key: value
        for key, value in BLIP2.case.config["text_config"].items()
        if key not in ("vocab_size", "max_position_embeddings")
    }
    config = {"architectures": [BLIP2.case.architecture], **BLIP2.case.config, "text_config": text}
    spec = registry.resolve(ConfigReader(config)).spec
    assert (spec.vocab_size, spec.max_model_len) == (50272, 2048)


def test_a_text_model_that_is_not_served_is_named(tmp_path: Path) -> None:
    BLIP2.write_files(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(UnknownArchitecture, match="t5"):
        registry.resolve(ConfigReader(config | {"text_config": {"model_type": "t5"}}))
