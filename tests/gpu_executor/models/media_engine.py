"""Prompts with media through an engine, and what transformers' logits say about the tokens that it gave."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpu_executor.config import ExecutorConfig
from gpu_executor.engine import Engine
from gpu_executor.media import MediaInput
from gpu_executor.request import PoolingParams, Request, Sampling
from gpu_executor.startup import build_engine
from preprocess.media_item import EncodedPrompt


@dataclasses.dataclass(frozen=True, slots=True)
class Generated:
    """Greedy tokens, each with the log-probabilities of the likeliest ones."""

    token_ids: list[int]
    logprobs: list[dict[int, float]]

    def check(self, prompt: EncodedPrompt, logits: torch.Tensor) -> None:
        """Compares with logits (tokens, V) of the prompt with these tokens behind it."""
        expected = logits.float().log_softmax(-1)[len(prompt.token_ids) - 1 : -1]
        assert len(expected) == len(self.token_ids)
        for token_id, top, row in zip(self.token_ids, self.logprobs, expected, strict=True):
            assert token_id == int(row.argmax())
            for other, logprob in top.items():
                assert logprob == pytest.approx(float(row[other]), abs=1e-3)


def engine_of(folder: Path, **options: Any) -> Engine:
    """An engine of one thread that serves a checkpoint in float32."""
    settings = {"dtype": "float32", "kv_cache_memory_bytes": 1 << 23, "max_num_seqs": 24, "num_threads": 1}
    return build_engine(ExecutorConfig(model=str(folder), **(settings | options)), progress=False)[0]


def generate(
    engine: Engine, prompts: Sequence[EncodedPrompt], max_tokens: int = 8, *, preempt_every: int = 0
) -> list[Generated]:
    """What the engine makes of prompts that it gets at once, when all of them lose their blocks in every so many steps."""
    for key, prompt in enumerate(prompts):
        sampling = Sampling(max_tokens=max_tokens, logprobs=5)
        engine.add(Request(key, list(prompt.token_ids), sampling, **media_of(prompt)))
    results = [Generated([], []) for _ in prompts]
    step = 0
    while engine.has_work:
        step += 1
        if preempt_every and step % preempt_every == 0:
            engine.scheduler.preempt_all()
        for token in engine.step().tokens:
            result = results[token.sequence.request.key]
            result.token_ids.append(token.token_id)
            result.logprobs.append(dict(zip(token.logprobs.top_ids, token.logprobs.top_logprobs, strict=True)))
    return results


def embed(engine: Engine, prompts: Sequence[EncodedPrompt]) -> list[np.ndarray]:
    """The embedding (D) of each prompt."""
    for key, prompt in enumerate(prompts):
        engine.add(Request(key, list(prompt.token_ids), pooling=PoolingParams("embed"), **media_of(prompt)))
    results: dict[object, np.ndarray] = {}
    while engine.has_work:
        results |= {pooled.request.key: pooled.rows[0] for pooled in engine.step().pooled}
    return [results[key] for key in range(len(prompts))]


def media_of(prompt: EncodedPrompt) -> dict[str, Any]:
    """What a Request says of a prompt's media."""
    media = [MediaInput.of_arrays(p.item.modality, p.item.digest, p.spans, p.item.tensors) for p in prompt.media]
    return {"media": media, "positions": prompt.positions}
