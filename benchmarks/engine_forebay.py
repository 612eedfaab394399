"""Owns how benchmarks step Forebay's engine in this process."""

from __future__ import annotations

from gpu_executor.config import ExecutorConfig
from gpu_executor.request import Request, Sampling
from gpu_executor.startup import build_engine


class ForebayEngine:
    """Forebay's engine behind workloads.SteppedEngine."""

    def __init__(
        self,
        model: str,
        dtype: str,
        *,
        load_format: str = "auto",
        max_model_len: int = 2048,
        threads: int | None = None,
        batch_invariant: bool = False,
    ) -> None:
        config = ExecutorConfig(
            model=model, dtype=dtype, load_format=load_format, max_model_len=max_model_len, max_num_seqs=64,
            kv_cache_memory_bytes=2 << 30, enable_prefix_caching=False, num_threads=threads,
            batch_invariant=batch_invariant,
        )  # fmt: skip
        self.engine, info = build_engine(config, progress=False)
        self.vocab_size = info.vocab_size

    def add(self, request_id: str, token_ids: list[int], max_tokens: int) -> None:
        max_tokens = min(max_tokens, self.engine.max_model_len - len(token_ids))
        self.engine.add(Request(request_id, token_ids, Sampling(max_tokens=max_tokens)))

    def step(self) -> list[str]:
        return [token.sequence.request.key for token in self.engine.step().tokens]

    def abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.engine.abort(request_id)
