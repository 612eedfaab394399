"""A runner without a model: the next token is a function of all tokens before it. For tests of engine and service."""

from __future__ import annotations

import threading

from gpu_executor.block_pool import BlockPool
from gpu_executor.engine import Engine
from gpu_executor.model_info import ModelInfo
from gpu_executor.model_runner import RunResult
from gpu_executor.sampler import SampledToken, TokenLogprobs
from gpu_executor.scheduler import ScheduledSequence, Scheduler

VOCAB_SIZE, BLOCK_SIZE = 100, 4
NAN_TOKEN = 99  # a prompt that ends with it has logits that are not numbers


def next_token(token_ids: list[int]) -> int:
    """What follows; never NAN_TOKEN."""
    return sum((i + 1) * token for i, token in enumerate(token_ids)) % 97


def continuation(prompt: list[int], count: int) -> list[int]:
    """What the fake model generates after a prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeRunner:
    """Stands in for ModelRunner. With `gate`, each step waits until a test lets it go with `gate.release()`."""

    def __init__(self, gate: threading.Semaphore | None = None) -> None:
        self.gate = gate
        self.error: Exception | None = None

    def run(self, plan: list[ScheduledSequence]) -> RunResult:
        if self.gate is not None:
            self.gate.acquire()
        if self.error is not None:
            raise self.error
        sampled = [self._sample(part) if part.samples else None for part in plan]
        return RunResult(sampled, {})

    def _sample(self, part: ScheduledSequence) -> SampledToken:
        sequence = part.sequence
        if sequence.token_ids[-1] == NAN_TOKEN:
            return SampledToken(None)
        token_id = next_token(sequence.token_ids)
        wanted = sequence.request.sampling.logprobs is not None
        return SampledToken(token_id, TokenLogprobs(-0.5, 1, [token_id], [-0.5]) if wanted else None)


def make_engine(
    runner: FakeRunner | None = None,
    *,
    num_blocks: int = 64,
    max_model_len: int = 128,
    clock=None,
    max_num_waiting: int = 50,
) -> Engine:
    scheduler = Scheduler(
        BlockPool(num_blocks),
        block_size=BLOCK_SIZE,
        max_num_seqs=8,
        max_num_batched_tokens=32,
        max_prefill_tokens_beside_decode=16,
    )
    options = {"clock": clock} if clock else {}
    return Engine(
        runner or FakeRunner(), scheduler, max_model_len=max_model_len, vocab_size=VOCAB_SIZE,
        max_num_waiting=max_num_waiting, **options,
    )  # fmt: skip


def make_info(engine: Engine) -> ModelInfo:
    return ModelInfo(
        architecture="Fake", dtype="float32", max_model_len=engine.max_model_len, vocab_size=VOCAB_SIZE, eos_token_ids=(98,),
        block_size=BLOCK_SIZE, num_blocks=engine.scheduler.pool.num_blocks, max_num_seqs=8, prefix_caching=True,
        model_digest="m" * 64, tokenizer_digest="t" * 64,
    )  # fmt: skip
