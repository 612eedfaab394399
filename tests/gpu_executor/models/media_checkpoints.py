"""Tiny multimodal checkpoints that transformers contains, pictures for them, and what transformers generates from both."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImages

from gpu_executor.engine import Engine
from gpu_executor.request import Request, Sampling
from preprocess.media_item import EncodedPrompt
from preprocess.processors.processor import Processor, PromptText
from preprocess.processors.registry import load_processor
from preprocess.tokenizer import TextTokenizer
from preprocess.tokenizer_files import load_tokenizer
from tests.gpu_executor.models.checkpoints import Case, tiny_checkpoint
from tests.gpu_executor.models.media_engine import engine_of, media_of
from tests.preprocess.processors.byte_tokenizer import plain_prompt, write_tokenizer

SPECIALS = ("<pad>", "<s>", "</s>")
NUM_TOKENS = 8


@dataclasses.dataclass(frozen=True)
class MediaCheckpoint:
    """A case of checkpoints.py with the files that a processor reads, and the control tokens beside SPECIALS.

    Ids are those of SPECIALS, then of `tokens`, then of the 256 bytes: every byte of a text is one token.
    """

    case: Case
    files: dict[str, dict[str, Any]]
    tokens: tuple[str, ...]

    def write(self, folder: Path) -> Any:
        """Writes the checkpoint and gives transformers' model."""
        model = tiny_checkpoint(self.case, folder)
        self.write_files(folder)
        return model

    def write_files(self, folder: Path) -> None:
        """Writes all but the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer(folder, *SPECIALS, *self.tokens, bos=SPECIALS[1])
        names = {"pad_token": SPECIALS[0], "bos_token": SPECIALS[1], "eos_token": SPECIALS[2]}
        config = {"architectures": [self.case.architecture], **self.case.config}
        contents = {
            "config.json": config,
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **names},
            **self.files,
        }
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content))

    def processor(self, folder: Path) -> tuple[Processor, TextTokenizer]:
        """Ours, of a folder that was written."""
        tokenizer = load_tokenizer(folder)
        assert tokenizer is not None
        processor = load_processor(folder, tokenizer)
        assert processor is not None
        return processor, tokenizer


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> PilImages.Image:
    """Noise in large spots, which resampling does not level."""
    spots = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 4), dtype=np.uint8)
    return PilImages.fromarray(spots, "RGBA").resize((width, height), PilImages.Resampling.BICUBIC).convert(mode)


def prompt_text(text: str, tokenizer: TextTokenizer) -> PromptText:
    """The text of a prompt in which control tokens are recognised, and which gets an <s>."""
    return plain_prompt(tokenizer, text)


def reference_tokens(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[list[int], list[float]]:
    """Greedy ids and their log-probabilities by transformers; raises where two ids are too close to call."""
    with torch.no_grad():
        out = model.generate(
            **inputs, max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    steps = torch.stack(out.logits)[:, 0].float().log_softmax(-1)
    best = steps.topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 1e-4, "a tie: the test would compare noise"
    return ids, steps[range(len(ids)), ids].tolist()


def generate(folder: Path, prompts: list[EncodedPrompt], **options: Any) -> list[tuple[list[int], list[float]]]:
    """Greedy ids and their log-probabilities by an engine of its own, all prompts in one batch."""
    return run_together(engine_of(folder, **options), prompts)


def run_together(engine: Engine, prompts: list[EncodedPrompt]) -> list[tuple[list[int], list[float]]]:
    """The same by an engine that may have worked before."""
    for key, prompt in enumerate(prompts):
        sampling = Sampling(max_tokens=NUM_TOKENS, logprobs=0)
        engine.add(Request(key, list(prompt.token_ids), sampling, **media_of(prompt)))
    results: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
    while engine.has_work:
        for token in engine.step().tokens:
            assert token.logprobs is not None, token
            ids, logprobs = results[token.sequence.request.key]
            ids.append(token.token_id)
            logprobs.append(token.logprobs.logprob)
    return results


def check_tokens(found: list[tuple[list[int], list[float]]], wanted: list[tuple[list[int], list[float]]]) -> None:
    """Ids of each prompt are equal, and log-probabilities within 1e-3."""
    for (ids, logprobs), (wanted_ids, wanted_logprobs) in zip(found, wanted, strict=True):
        assert ids == wanted_ids
        assert logprobs == pytest.approx(wanted_logprobs, abs=1e-3)
