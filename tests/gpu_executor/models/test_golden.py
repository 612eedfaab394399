"""Architectures that transformers does not contain generate what their golden files say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_executor.config import ExecutorConfig
from gpu_executor.engine import Engine
from gpu_executor.request import Request, Sampling
from gpu_executor.startup import build_engine
from tests.golden.materialize import FOLDER, materialize, read_golden

GOLDENS = sorted(path.stem for path in FOLDER.glob("*.json") if read_golden(path.stem)["task"] == "generate")


@pytest.fixture(scope="module", params=GOLDENS)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    content = read_golden(request.param)
    return content, materialize(content, tmp_path_factory.mktemp("golden"))


def engine_of(folder: Path, **options: Any) -> Engine:
    settings = {"dtype": "float32", "kv_cache_memory_bytes": 1 << 23, "max_num_seqs": 24, "num_threads": 1}
    return build_engine(ExecutorConfig(model=str(folder), **(settings | options)), progress=False)[0]


def check(
    golden: dict[str, Any], engine: Engine, *, copies: int = 1, before_step: Callable[[int], None] = lambda _: None
) -> None:
    """Runs all cases in one batch, `copies` times over, and compares ids and log-probabilities."""
    cases = golden["cases"]
    for key in range(copies * len(cases)):
        case = cases[key % len(cases)]
        sampling = Sampling(max_tokens=case["max_tokens"], logprobs=5)
        engine.add(Request(key, list(case["prompt_token_ids"]), sampling))
    got: dict[int, list[tuple[int, dict[int, float]]]] = {key: [] for key in range(copies * len(cases))}
    step = 0
    while engine.has_work:
        before_step(step)
        step += 1
        for token in engine.step().tokens:
            top = dict(zip(token.logprobs.top_ids, token.logprobs.top_logprobs, strict=True))
            got[token.sequence.request.key].append((token.token_id, top))
    for key, tokens in got.items():
        case = cases[key % len(cases)]
        assert [token_id for token_id, _ in tokens] == case["token_ids"]
        for (_, top), wanted in zip(tokens, case["top_logprobs"], strict=True):
            for token_id, logprob in wanted:
                if token_id in top:  # the fifth and the sixth may lie closer than the tolerance
                    assert top[token_id] == pytest.approx(logprob, abs=1e-3)
            assert len(top.keys() & {token_id for token_id, _ in wanted}) >= len(wanted) - 1


def test_together(golden: tuple[dict[str, Any], Path]) -> None:
    check(golden[0], engine_of(golden[1]), copies=3)


def test_in_small_chunks_and_blocks(golden: tuple[dict[str, Any], Path]) -> None:
    engine = engine_of(golden[1], max_num_batched_tokens=30, max_prefill_tokens_beside_decode=5, block_size=4)
    check(golden[0], engine, copies=2)
    engine.scheduler.check()


def test_after_forced_preemption(golden: tuple[dict[str, Any], Path]) -> None:
    engine = engine_of(golden[1])
    check(
        golden[0], engine, copies=2, before_step=lambda step: engine.scheduler.preempt_all() if step % 5 == 4 else None
    )
    assert engine.scheduler.ledger.num_preemptions > 0


def test_with_a_warm_prefix_cache(golden: tuple[dict[str, Any], Path]) -> None:
    engine = engine_of(golden[1], block_size=4)
    check(golden[0], engine)
    check(golden[0], engine)
