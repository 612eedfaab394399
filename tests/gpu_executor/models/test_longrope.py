"""A sequence that outgrows the trained length starts over with the long factors, as transformers' Phi-3 does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpu_executor.config import ExecutorConfig
from gpu_executor.engine import Engine
from gpu_executor.request import Request, Sampling
from gpu_executor.startup import build_engine
from tests.gpu_executor.models.checkpoints import case_of, tiny_checkpoint

TRAINED, NUM_TOKENS = 32, 12


def engine_of(folder: Path, **options: object) -> Engine:
    settings = {"dtype": "float32", "kv_cache_memory_bytes": 1 << 23, "num_threads": 1, "block_size": 4}
    return build_engine(ExecutorConfig(model=str(folder), **(settings | options)), progress=False)[0]


def generate(engine: Engine, prompts: list[list[int]], **sampling: object) -> list[list[int]]:
    for key, prompt in enumerate(prompts):
        engine.add(Request(key, prompt, Sampling(max_tokens=NUM_TOKENS, **sampling)))
    found: dict[tuple[object, int], list[int]] = {}
    while engine.has_work:
        for token in engine.step().tokens:
            found.setdefault((token.sequence.request.key, token.sequence.index), []).append(token.token_id)
        engine.scheduler.check()
    return [found[key] for key in sorted(found)]


@pytest.mark.parametrize("caching", [True, False], ids=["cached", "uncached"])
def test_tokens_before_and_behind_the_trained_length_are_those_of_transformers(tmp_path: Path, caching: bool) -> None:
    model = tiny_checkpoint(case_of("phi3-su"), tmp_path)
    prompts = [
        [(7 * i + 3 * n) % 190 + 3 for i in range(n)] for n in (14, TRAINED - 5, TRAINED - 1, TRAINED, TRAINED + 1, 50)
    ]
    wanted = []
    for prompt in prompts:
        with torch.no_grad():
            out = model.generate(
                torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        wanted.append(out[0, len(prompt) :].tolist())
    engine = engine_of(tmp_path, enable_prefix_caching=caching)
    assert engine.spec.long_from == TRAINED
    for _ in range(2):
        assert generate(engine, prompts) == wanted
    assert engine.scheduler.ledger.num_preemptions == 2 * 3  # those that outgrow it, once each


def test_sequences_of_one_request_outgrow_it_each_by_itself(tmp_path: Path) -> None:
    tiny_checkpoint(case_of("phi3-su"), tmp_path)
    prompt = [5 * i % 190 + 3 for i in range(TRAINED - 4)]
    together = generate(engine_of(tmp_path), [prompt], n=3, temperature=1.0, seed=3)
    alone = generate(
        engine_of(tmp_path, max_num_seqs=1, enable_prefix_caching=False), [prompt], n=3, temperature=1.0, seed=3
    )
    assert together == alone
    assert len({tuple(ids) for ids in together}) > 1


def test_below_the_trained_length_nothing_is_long(tmp_path: Path) -> None:
    tiny_checkpoint(case_of("phi3-su"), tmp_path)
    assert engine_of(tmp_path, max_model_len=TRAINED).spec.long_from is None
