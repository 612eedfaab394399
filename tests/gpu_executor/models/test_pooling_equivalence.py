"""What is pooled equals what transformers gives: hidden states, embeddings and classes, within 1e-4 in float32.

Alone and in ragged batches, in chunks, after preemption, and with a warm prefix cache.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpu_executor.request import PoolingParams
from tests.gpu_executor.models.checkpoints import Case, tiny_checkpoint
from tests.gpu_executor.models.pooling_cases import CLASSIFY, EMBED, Reference
from tests.gpu_executor.models.pooling_run import engine_of, pool

LENGTHS = (1, 2, 15, 16, 17, 33, 50, 7, 64, 3, 21, 90, 120)
CHUNKS = {"max_num_batched_tokens": 37, "max_prefill_tokens_beside_decode": 7, "block_size": 5}


@dataclasses.dataclass
class Checkpoint:
    """A folder, the model that it was made from, and prompts with their token types where the model has some."""

    case: Case
    folder: Path
    reference: Reference
    prompts: list[list[int]]
    types: list[list[int]]

    @property
    def bidirectional(self) -> bool:
        return not self.case.config.get("is_causal", True) or "layer_norm_eps" in self.case.config

    def params(self, task: str, **options: Any) -> list[PoolingParams]:
        return [PoolingParams(task, token_type_ids=tuple(types), **options) for types in self.types]


def _make(case: Case, folder: Path) -> Checkpoint:
    reference = Reference(tiny_checkpoint(case, folder))
    draw = random.Random(3)
    prompts = [[draw.randrange(4, 199) for _ in range(length)] for length in LENGTHS]
    has_types = case.config.get("type_vocab_size", 0) > 1
    types = [[int(i >= len(prompt) // 2) for i in range(len(prompt))] if has_types else [] for prompt in prompts]
    return Checkpoint(case, folder, reference, prompts, types)


@pytest.fixture(scope="module", params=EMBED, ids=str)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return _make(request.param, tmp_path_factory.mktemp(request.param.name))


@pytest.fixture(scope="module", params=CLASSIFY, ids=str)
def classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return _make(request.param, tmp_path_factory.mktemp(request.param.name))


def _ways(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Settings under which results must be the same; a bidirectional model takes no prompt in chunks."""
    if checkpoint.bidirectional:
        return [{}, {"max_num_batched_tokens": 130, "block_size": 5}]
    return [{}, CHUNKS]


def _close(got: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_every_hidden_state(base: Checkpoint) -> None:
    wanted = [base.reference.hidden(*pair) for pair in zip(base.prompts, base.types, strict=True)]
    for options in _ways(base):
        engine = engine_of(base.folder, task="reward", override_pooler_config={"pooling_type": "ALL"}, **options)
        for preempt_every in (0, 9):
            for got, rows in zip(
                pool(engine, base.prompts, base.params("reward"), preempt_every=preempt_every), wanted, strict=True
            ):
                _close(got, rows)


@pytest.mark.parametrize("kind", ["CLS", "LAST", "MEAN"])
def test_embeddings(base: Checkpoint, kind: str) -> None:
    choose = {"CLS": lambda h: h[0], "LAST": lambda h: h[-1], "MEAN": lambda h: h.mean(0)}[kind]
    wanted = [choose(base.reference.hidden(*pair)) for pair in zip(base.prompts, base.types, strict=True)]
    for options in _ways(base):
        engine = engine_of(base.folder, task="embed", override_pooler_config={"pooling_type": kind}, **options)
        for preempt_every in (0, 9):  # the second time with a warm cache, where there is one
            raw = pool(engine, base.prompts, base.params("embed", normalize=False), preempt_every=preempt_every)
            for got, vector in zip(raw, wanted, strict=True):
                _close(got, vector[None])
        for got, vector in zip(pool(engine, base.prompts, base.params("embed")), wanted, strict=True):
            _close(got, vector[None] / np.linalg.norm(vector))
        for got, vector in zip(pool(engine, base.prompts, base.params("embed", dimensions=13)), wanted, strict=True):
            _close(got, vector[None, :13] / np.linalg.norm(vector[:13]))
        cache = engine.scheduler.pool.prefix_cache
        assert (cache is None) == base.bidirectional
        if cache is not None:
            assert (cache.num_hit_tokens > 100) == (kind == "LAST")


def test_embeddings_in_bfloat16_point_the_same_way(base: Checkpoint) -> None:
    engine = engine_of(base.folder, task="embed", dtype="bfloat16", override_pooler_config={"pooling_type": "MEAN"})
    for got, prompt, types in zip(
        pool(engine, base.prompts, base.params("embed")), base.prompts, base.types, strict=True
    ):
        wanted = base.reference.hidden(prompt, types).mean(0)
        assert float(got[0] @ wanted) / np.linalg.norm(wanted) > 0.99


def test_classes(classifier: Checkpoint) -> None:
    wanted = [classifier.reference.logits(*pair) for pair in zip(classifier.prompts, classifier.types, strict=True)]
    for options in _ways(classifier):
        engine = engine_of(classifier.folder, **options)
        one = len(wanted[0]) == 1
        assert set(engine.pooler.tasks) == ({"classify", "score"} if one else {"classify"})
        for preempt_every in (0, 9):
            raw = pool(
                engine, classifier.prompts, classifier.params("classify", activation=False), preempt_every=preempt_every
            )
            for got, logits in zip(raw, wanted, strict=True):
                _close(got, logits[None])
        for got, logits in zip(pool(engine, classifier.prompts, classifier.params("classify")), wanted, strict=True):
            logits = torch.from_numpy(logits)
            _close(got, (logits.sigmoid() if one else logits.softmax(-1))[None].numpy())
        if one:
            scores = pool(engine, classifier.prompts, classifier.params("score", activation=False))
            for got, logits in zip(scores, wanted, strict=True):
                _close(got, logits[None])
