"""Owns running prompts through an engine that pools, for every test of pooling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu_executor.config import ExecutorConfig
from gpu_executor.engine import Engine
from gpu_executor.request import PoolingParams, Request
from gpu_executor.startup import build_engine


def engine_of(folder: Path | str, **options: Any) -> Engine:
    """An engine over a tiny model, in float32 unless told otherwise."""
    settings = {"dtype": "float32", "kv_cache_memory_bytes": 1 << 23, "max_num_seqs": 24, "num_threads": 1}
    return build_engine(ExecutorConfig(model=str(folder), **(settings | options)), progress=False)[0]


def pool(
    engine: Engine,
    prompts: Sequence[list[int]],
    params: PoolingParams | Sequence[PoolingParams],
    *,
    preempt_every: int = 0,
) -> list[np.ndarray]:
    """The rows (n, columns) of each prompt, all in one batch; holds that rows come once each, and in order."""
    if isinstance(params, PoolingParams):
        params = [params] * len(prompts)
    rows: list[list[np.ndarray]] = [[] for _ in prompts]
    for key, (prompt, of_prompt) in enumerate(zip(prompts, params, strict=True)):
        engine.add(Request(key, list(prompt), pooling=of_prompt))
    for step in range(2000):
        if not engine.has_work:
            engine.scheduler.check()
            assert engine.scheduler.pool.num_used == 0
            return [np.concatenate(parts) for parts in rows]
        if preempt_every and step % preempt_every == preempt_every - 1:
            engine.scheduler.preempt_all()
        output = engine.step()
        assert not output.failed and not output.tokens
        for pooled in output.pooled:
            mine = rows[pooled.request.key]
            assert pooled.first_row == sum(map(len, mine))
            mine.append(pooled.rows)
    raise AssertionError("no end")
